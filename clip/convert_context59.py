"""PASCAL-Context's official JSON -> label maps: 0 background and 1 to 59 the classes, and the lists of images.

    python clip/convert_context59.py --json trainval_merged.json --output VOCdevkit/VOC2010

trainval_merged.json is what the "PASCAL in Detail" API reads, and what mmsegmentation's converter makes its maps from.
That API is not needed. Of the file are read

    images             [{image_id, file_name, height, width, phase: train | val | test}, ...]
    annos_segmentation [{image_id, category_id, segmentation: {size: [height, width], counts: COCO's text}}, ...]

Category ids are those of the 459 annotated categories, of which the file has the 59 frequent ones. Where regions
overlap the later one in the file counts, as in the API; what no region covers is background. The file has some 600 MB
and takes several times that in memory.

Written are SegmentationClassContext/*.png and ImageSets/SegmentationContext/{train,val}.txt; Context59 ignores the 0 of
these maps and Context60 calls it background.
"""

import argparse
from pathlib import Path

from zero_shot_flags import add_conversion_flags

from last_vit.command_line import command


@command("context_labels:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--json", type=Path, required=True, help="trainval_merged.json")
    parser.add_argument("--output", type=Path, required=True, help="the VOC2010 folder, which has JPEGImages")
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
