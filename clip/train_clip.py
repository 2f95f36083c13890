"""Text-supervised training: open_clip_train's own trainer with LaSt in the image tower.

    torchrun --nproc-per-node 8 -- clip/train_clip.py --model ViT-B-16-quickgelu --pretrained openai \\
        --train-data '/data/laion400m/{00000..41454}.tar' --train-num-samples 64000000 --dataset-resampled \\
        --pooling last --top-k 0.5 --local-loss --gather-with-grad --precision amp_bf16 --name vitb16_last
    python clip/train_clip.py --model clip_mini_8 --dataset-type synthetic-captions --train-num-samples 2048 \\
        --batch-size 64 --epochs 1 --warmup 8 --device cpu --precision fp32 --workers 0 --name try

All flags of open_clip_train 3.3 are understood and mean what they mean there (--help-open-clip prints them); the flags
below are ours. Recipes are in clip/recipes/. The trainer itself runs unchanged: only names that it looks up are given
other values for the run (clip_train_seams.py), and with --pooling cls it computes what open_clip computes, bit by bit.
torchrun needs the `--`, or it takes --logs for one of its own flags. Slurm: `srun python clip/train_clip.py ...` with
MASTER_ADDR and MASTER_PORT set; open_clip reads Slurm's variables.

Checkpoints are open_clip's, LaSt has no parameters; `last_vit.json` beside them records the pooling. --resume latest
continues a run of the same --name. Beta2 and eps default to 0.98 and 1e-6 for models with "vit" in their name, to 0.999
and 1e-8 for all others (EVA02-*, clip_mini_8): open_clip's rule, so pass --beta2 and --eps for those.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from clip_train_options import parse_options

_HOSTS = {"open_clip", "open_clip_train"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train; a user's error, or a loss that is not finite, is one message and exit status 2."""
    options, rest = parse_options(__doc__, argv)
    if options.dry_run and os.environ.get("RANK", "0") != "0":
        return 0  # one process prints the plan of all that torchrun started
    try:
        from clip_train_run import print_host_help, train

        if options.help_open_clip:
            print_host_help()
        train(options, rest)
    except ImportError as error:
        print(f"train_clip.py: error: {error}; run make setup, or pip install -r requirements.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        from last_vit.runtime import error_text

        print(f"train_clip.py: error: {error_text(error)}", file=sys.stderr)
        return 2
    except (AssertionError, RuntimeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if _HOSTS.isdisjoint(Path(place.filename).parts):
            raise  # torch's own: the traceback is needed
        print(f"train_clip.py: error: open_clip stopped: {str(error) or place.line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
