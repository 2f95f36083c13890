"""The open-vocabulary split of COCO 2017: training on 48 base classes, testing on these and 17 novel ones.

    python ov_detection/make_ov_coco.py --coco /path/to/coco      # 107,761 training and 4,836 validation images
    python ov_detection/make_ov_coco.py --coco coco-mini --output data/ov-coco-mini --no-count-check

Reads annotations/instances_{train,val}2017.json and writes, beside them or to --output,

    instances_train2017_seen_2_65_cat.json   annotations of base classes; images that have none are left out. Images
                                             that also show novel objects stay, without the novel boxes
    instances_val2017_all_2.json             annotations of all 65 classes; images that have none are left out

under the names that the split's users know (OVR-CNN's rule, F-ViT's file). Crowd regions are kept and count as
annotations. Both files list the 65 classes by ascending COCO id, the order in which labels are counted; the other 15
classes of COCO are gone. Any number of images other than the published one is an error, unless --no-count-check says
that the input is not all of COCO; nothing is written then.
"""

from argparse import ArgumentParser
from pathlib import Path

from last_vit.command_line import command

SPLITS = ("train", "val")


@command("ov_splits:make_ov_coco")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("--coco", type=Path, required=True, help="folder that holds annotations/")
    add_split_flags(parser)


def add_split_flags(parser: ArgumentParser) -> None:
    """What make_ov_lvis.py takes, too."""
    add = parser.add_argument
    add("--output", type=Path, help="folder for what is made (default: where the official file is)")
    add("--split", nargs="+", choices=SPLITS, default=SPLITS, help="default: both")
    add("--no-count-check", dest="count_check", action="store_false", help="the input is a part of the official set")


if __name__ == "__main__":
    main()
