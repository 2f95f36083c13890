"""The open-vocabulary split of LVIS v1: training without the 337 rare classes, testing on all 1,203.

    python ov_detection/make_ov_lvis.py --lvis /path/to/lvis
    python ov_detection/make_ov_lvis.py --lvis mine --output data/ov-lvis --no-count-check

Reads lvis_v1_train.json and writes, beside it or to --output, lvis_v1_train_norare.json: all images and all 1,203
categories as they are (neg_category_ids, not_exhaustive_category_ids, frequencies), without the annotations of rare
classes. lvis_v1_val.json is used as it is: it is only checked. Labels are counted by ascending category id.

Checked: 100,170 training images with 1,270,141 annotations, 19,809 validation images, 337 rare + 461 common + 405
frequent classes, the lists of absent classes per image. Another number is an error, unless --no-count-check says that
the input is not all of LVIS; nothing is written then.
"""

from argparse import ArgumentParser
from pathlib import Path

from make_ov_coco import add_split_flags

from last_vit.command_line import command


@command("ov_splits:make_ov_lvis")
def main(parser: ArgumentParser) -> None:
    """The command line's flags."""
    parser.add_argument("--lvis", type=Path, required=True, help="folder that holds lvis_v1_{train,val}.json")
    add_split_flags(parser)


if __name__ == "__main__":
    main()
