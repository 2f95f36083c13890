"""COCO-Stuff's raw maps (ids 0 to 181, 255 unlabelled) -> *_labelTrainIds.png with the 171 classes, 255 ignored.

    python clip/convert_coco_stuff.py --root coco_stuff164k --output coco_stuff164k
    python clip/convert_coco_stuff.py --root coco_stuff164k --output elsewhere --split train val --num-workers 16

Raw maps are looked for in <root>/stuffthingmaps/val2017, <root>/annotations/val2017 (mmsegmentation's place) and
<root>/val2017 (as stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff unpacks). Written are
<output>/annotations/val2017/*_labelTrainIds.png. Needed only by other programs: clip/seg_sets.py reads raw maps.
"""

import argparse
from pathlib import Path

from zero_shot_flags import add_conversion_flags, add_target_flags

from last_vit.command_line import command


@command("label_conversion:convert_coco_stuff")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--root", type=Path, required=True, help="folder of the raw maps, or above")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
