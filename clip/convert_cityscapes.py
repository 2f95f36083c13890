"""Cityscapes' *_gtFine_labelIds.png -> *_gtFine_labelTrainIds.png with the 19 evaluated classes, 255 ignored.

    python clip/convert_cityscapes.py --root cityscapes --output cityscapes --split train val

Written are <output>/gtFine/val/<city>/*_gtFine_labelTrainIds.png, where mmsegmentation looks for them when <output> is
the root. Needed only by other programs: clip/seg_sets.py reads labelIds as they are.
"""

import argparse
from pathlib import Path

from zero_shot_flags import add_conversion_flags, add_target_flags

from last_vit.command_line import command


@command("label_conversion:convert_cityscapes")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--root", type=Path, required=True, help="folder with gtFine/")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
