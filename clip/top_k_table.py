r"""Zero-shot accuracy over K and pooling (paper table 8): checkpoints as trained, and each read in other ways.

    python clip/top_k_table.py --imagenet-root /path/to/imagenet --table \
        --model "OpenCLIP ViT-B/16, CLS=open_clip:ViT-B-16@cls.pt" \
        --model "OpenCLIP ViT-B/16, LaSt K=98=open_clip:ViT-B-16@k98.pt" ...           # table 8: a checkpoint per K
    python clip/top_k_table.py --imagenet-root ... --model A=open_clip:ViT-B-16@k98.pt \
        --pool cls mean max attention last --top-k 1 49 0.5 1.0 --point-in-box         # one checkpoint, many read-outs

The paper trains a model per row; its rows are what `--model` alone gives. `--pool` adds rows that read the same weights
in another way than they were trained for: an ablation of the read-out, not of training. All rows of a model share one
forward pass per image. `--point-in-box` adds how often the patch most similar to the row's token lies in the object's
box, over the images with one small object. Segmentation reads patches, not the pooled token: table 8's mIoU of a
checkpoint is eval_zero_shot_seg.py's.
"""

import argparse

from zero_shot_flags import add_clip_flags, add_image_flags

from last_vit.command_line import add_running_flags, command, patch_count
from last_vit.names import POOLS


@command("zero_shot_classification:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_clip_flags(parser)
    add = parser.add_argument_group("read-outs").add_argument
    add("--pool", nargs="+", choices=POOLS, default=[], help="also read every model with these; default: none")
    add(
        "--top-k",
        type=patch_count,
        nargs="+",
        default=[1, 0.25, 0.5, 1.0],
        help="of --pool last: numbers of patches, or shares of them; default 1 0.25 0.5 1.0",
    )
    add("--point-in-box", action="store_true", help="also Point-in-Box; needs ImageNet's XML boxes")
    add(
        "--max-box-area",
        type=float,
        default=0.25,
        help="largest share of an image that a box may take to count; default 0.25 (the released script's)",
    )
    add_image_flags(parser)
    add_running_flags(parser, batch_size=64)
    parser.set_defaults(per_class=None)


if __name__ == "__main__":
    main()
