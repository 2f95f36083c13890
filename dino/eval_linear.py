r"""Linear classification on frozen features (DINO's eval_linear.py).

    torchrun --nproc-per-node 8 dino/eval_linear.py --pretrained_weights output/dino/checkpoint.pth \
        --data_path /path/to/imagenet --output_dir output/dino_linear
    torchrun ... dino/eval_linear.py --arch vit_base --n_last_blocks 1 --avgpool_patchtokens true ...
    python dino/eval_linear.py ... --output_dir output/dino_linear --evaluate

DINO's protocol: the class tokens of the last 4 blocks after the final norm, joined (ViT-S), or that of the last beside
the mean of its patches (ViT-B); a linear layer, SGD with momentum 0.9, learning rate 0.001 * images per step / 256,
falling to 0 along a cosine over 100 epochs; random resized crops and flips to train, a centre crop of 224 from 256,
bicubic, to validate. For a backbone trained with LaSt the LaSt token of each block's patches, after the final norm,
stands in the class token's place.

Training features change with every crop, so the backbone runs in every epoch; those of val are computed once. A run is
continued from `checkpoint.pth.tar` in its --output_dir. DINO publishes the best validation accuracy of all epochs;
records hold the last epoch's, and the best beside it.
"""

import argparse
import sys
from pathlib import Path

from dino_options import boolean, number
from eval_options import add_backbone_flags, add_data_flags

from last_vit.command_line import add_record_flags, command, positive


@command("linear_probe:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_backbone_flags(parser)
    add_data_flags(parser)
    add = parser.add_argument_group("classifier").add_argument
    add("--n_last_blocks", type=positive, default=4, help="of a ViT: 4 for ViT-S, 1 for ViT-B; default 4")
    add("--avgpool_patchtokens", type=boolean, default=False, help="also the mean of the patches: true for ViT-B")
    add("--epochs", type=positive, default=100, help="default 100")
    add("--lr", type=number(sys.float_info.min), default=0.001, help="of 256 images, scaled linearly; default 0.001")
    add("--val_freq", type=positive, default=1, help="validate every n-th epoch, and after the last; default 1")
    add("--num_labels", type=positive, default=1000, help="classes of the data; default 1000")
    add("--output_dir", type=Path, default=Path("."), help="checkpoint and log.txt; default .")
    add("--evaluate", action="store_true", help="only validate the checkpoint in --output_dir")
    add_record_flags(parser)


if __name__ == "__main__":
    main()
