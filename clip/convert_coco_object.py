"""COCO-Object's masks: *_instanceTrainIds.png with 0 background and 1 to 80 COCO's categories; nothing is ignored.

    python clip/convert_coco_object.py --root coco_stuff164k --output coco_object
    python clip/convert_coco_object.py --instances coco/annotations/instances_val2017.json --output coco_object

From COCO-Stuff's raw maps is how the published numbers were made: all stuff and every unlabelled pixel is background.
From COCO's own instances is for those who have no such maps, and gives similar masks, not the same: where objects
overlap, the smaller one is on top. Written are <output>/annotations/val2017/*; images belong into
<output>/images/val2017.
"""

import argparse
from pathlib import Path

from zero_shot_flags import add_conversion_flags, add_target_flags

from last_vit.command_line import command


@command("label_conversion:convert_coco_object")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", type=Path, help="folder of COCO-Stuff's raw maps, or above")
    source.add_argument("--instances", type=Path, help="instances_val2017.json, in place of raw maps")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
