r"""What the class token of a ViT attends to in the last layer, one picture per head (DINO's visualize_attention.py).

    python dino/visualize_attention.py --pretrained_weights dino_deitsmall8_pretrain.pth --image_path image.jpg
    python dino/visualize_attention.py --patch_size 16 --pretrained_weights output/dino/checkpoint.pth \
        --image_path folder --threshold 0.6 --output_dir attention

Writes img.png (the image as the model sees it: resized to --image_size, aspect ignored, and cut to whole patches),
attn-head<j>.png, and with --threshold t mask_th<t>_head<j>.png: the fewest patches that hold that share of the head's
attention. For a folder, each image gets a folder of its own. A map's colours span its own range, dark to bright.

A backbone trained with LaSt or the mean still has a class token, but nothing was learnt through its read-out; what such
a backbone attends to is better asked of its patch score (visualization/compare_models.py).
"""

import argparse
from pathlib import Path

from eval_options import add_backbone_flags

from last_vit.command_line import add_device_flag, command, positive


@command("attention_pictures:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_backbone_flags(parser, patch_size=8)
    add = parser.add_argument_group("pictures").add_argument
    add("--image_path", type=Path, required=True, help="an image, or a folder of images")
    size = "height and width, or one number for the shorter side; default 480 480"
    add("--image_size", type=positive, nargs="+", default=[480, 480], metavar="PIXELS", help=size)
    add("--threshold", type=float, help="also masks of the patches that hold this share of the attention, such as 0.6")
    add("--output_dir", type=Path, default=Path("."), help="default .")
    add_device_flag(parser)


if __name__ == "__main__":
    main()
