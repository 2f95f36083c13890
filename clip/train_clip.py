"""Text-supervised training: open_clip_train's own trainer with LaSt in the image tower.

    torchrun --nproc-per-node 8 -- clip/train_clip.py --model ViT-B-16-quickgelu --pretrained openai \\
        --train-data '/data/laion400m/{00000..41454}.tar' --train-num-samples 64000000 --dataset-resampled \\
        --pooling last --top-k 0.5 --local-loss --gather-with-grad --precision amp_bf16 --name vitb16_last
    python clip/train_clip.py --model clip_mini_8 --dataset-type synthetic-captions --train-num-samples 2048 \\
        --batch-size 64 --epochs 1 --warmup 8 --device cpu --precision fp32 --workers 0 --name try

All flags of open_clip_train 3.3 are understood and mean what they mean there (--help-open-clip prints them); the flags
below are ours. Recipes are in clip/recipes/. The trainer itself runs unchanged: only names that it looks up are given
other values (clip_train_seams.py lists them), and with --pooling cls it computes what open_clip computes, bit by bit.
torchrun needs the `--`, or it takes --logs for one of its own flags. Slurm: `srun python clip/train_clip.py ...` with
MASTER_ADDR and MASTER_PORT set; open_clip reads Slurm's variables.

Checkpoints are open_clip's, LaSt has no parameters; they and `last_vit.json` beside them record the pooling. --resume
latest continues a run of the same --name. Beta2 and eps default to 0.98 and 1e-6 for models with "vit" in their name,
to 0.999 and 1e-8 for all others (EVA02-*, clip_mini_8): open_clip's rule, so pass --beta2 and --eps for those.
"""

from collections.abc import Sequence
from importlib import import_module

from clip_train_options import build_parser

from last_vit.command_line import run_command_line


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and train; a user's error, or a loss that is not finite, is one message and exit status 2."""
    parser = build_parser(__doc__)
    options, host_flags = parser.parse_known_args(argv)
    run_command_line(parser, lambda _: import_module("clip_train_run").run(options, host_flags), [])


if __name__ == "__main__":
    main()
