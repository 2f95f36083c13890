"""Self-supervised training with DINO (arXiv 2104.14294), with DINO's own read-out or with LaSt.

    torchrun --nproc-per-node 8 dino/main_dino.py --arch vit_small --data_path /path/to/imagenet/train \\
        --output_dir output/dino
    torchrun --nproc-per-node 8 dino/main_dino.py --pooling last --top_k 0.25 --data_path ... --output_dir ...
    python dino/main_dino.py --data_path synthetic --arch vit_tiny --batch_size_per_gpu 8 --output_dir output/try

Flags, defaults and checkpoints are DINO's, so a command for its main_dino.py runs here; recipes are in dino/recipes/.
A run is continued from `checkpoint.pth` in its --output_dir, also one that DINO's own code wrote; on a CPU bit by bit,
for order and augmentation of the data are a function of (seed, position). Without a GPU it trains in float32.
"""

import argparse

from dino_options import add_flags

from last_vit.command_line import command


@command("dino_training:train")
def main(parser: argparse.ArgumentParser) -> None:
    """DINO's flags and ours."""
    add_flags(parser)


if __name__ == "__main__":
    main()
