r"""The main object of any photo: one box by LaSt's patch score, LOST, DINO-seg or TokenCut; no labels needed.

    python dino/discover.py --image photo.jpg --model dino:vit_small/16@dino_deitsmall16_pretrain.pth
    python dino/discover.py --image *.jpg --model CLS=... --model LaSt=... --method patch-score tokencut --out boxes

Writes <out>/<photo>_<model>.png, a panel per method with the patches that it found and its box, and prints the boxes in
the photo's pixels, the photo held upright. The same methods as eval_object_discovery.py, which measures them.
"""

import argparse
from pathlib import Path

from eval_options import add_method_flags, add_resize_flag

from last_vit.command_line import MODEL_HELP, add_device_flag, add_photo_flag, command


@command("photo_discovery:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_photo_flag(parser)
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add_method_flags(parser)
    add_resize_flag(parser, 480)
    add("--out", type=Path, default=Path("output/discover"), help="folder of the pictures; default output/discover")
    add_device_flag(parser)


if __name__ == "__main__":
    main()
