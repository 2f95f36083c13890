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

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from last_vit.command_line import command_parser, run_command_line

NAME = "make_ov_lvis.py"
OUTPUT = "lvis_v1_train_norare.json"
COUNTS = {
    "train": {"images": 100_170, "annotations": 1_270_141},
    "val": {"images": 19_809},
}
NUM_CLASSES = {"r": 337, "c": 461, "f": 405}


def remove_rare(content: dict[str, Any]) -> dict[str, Any]:
    """The same without the annotations of rare classes; images and categories stay.

    Raises:
        ValueError: Content that is not LVIS's.
    """
    rare = {entry["id"] for entry in content["categories"] if entry.get("frequency") == "r"}
    return {**content, "annotations": [entry for entry in content["annotations"] if entry["category_id"] not in rare]}


def check_lvis(content: dict[str, Any], split: str, count_check: bool) -> None:
    """Refuse content that is not LVIS v1's.

    Args:
        content: Of lvis_v1_train.json or lvis_v1_val.json.
        split: "train" or "val".
        count_check: Compare with the published counts.

    Raises:
        ValueError: Parts that do not belong together, no frequencies, images without LVIS's lists, or other counts.
    """
    from instance_json import check_links, check_lvis_lists
    from ov_classes import read_ov_classes

    check_links(content)
    classes = read_ov_classes(content["categories"], novel=())
    if not classes.is_lvis:
        raise ValueError("its categories have no frequency: expected LVIS v1's, which say r, c or f")
    check_lvis_lists(content)
    found = {**{what: len(content[what]) for what in COUNTS[split]}, **Counter(classes.frequencies)}
    wrong = [
        f"{found.get(what, 0):,} {what} (published: {number:,})"
        for what, number in {**COUNTS[split], **NUM_CLASSES}.items()
        if found.get(what, 0) != number
    ]
    if count_check and wrong:
        raise ValueError(
            f"{'; '.join(wrong)} (r, c, f: classes of that frequency): fetch the official file again, or say "
            "--no-count-check for a part of LVIS"
        )


def run(args: Namespace) -> None:
    """Make the training file, check the validation file, and say what is in them."""
    from instance_json import write_instances

    from last_vit.data.coco import read_coco_json

    training = None
    for split in args.split:
        source = args.lvis / f"lvis_v1_{split}.json"
        if not source.is_file():
            raise FileNotFoundError(f"no {source}: --lvis is the folder that holds LVIS v1's files (lvisdataset.org)")
        content = read_coco_json(source)
        try:
            check_lvis(content, split, args.count_check)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        num_images, num_classes = len(content["images"]), len(content["categories"])
        print(f"{split}: {num_images:,} images, {len(content['annotations']):,} annotations, {num_classes:,} classes")
        if split == "train":
            training = remove_rare(content)
            print(f"{split}: {len(training['annotations']):,} annotations are of common and frequent classes")
        else:
            print(f"{split}: {source} is used as it is")
    if training is not None:
        target = (args.output or args.lvis) / OUTPUT
        write_instances(target, training)
        print(f"written {target}")
    if not args.count_check:
        print("the counts were not compared with the published ones (--no-count-check)")


def build_parser() -> ArgumentParser:
    """The command line's flags."""
    parser = command_parser(NAME, __doc__)
    parser.add_argument("--lvis", type=Path, required=True, help="folder that holds lvis_v1_{train,val}.json")
    parser.add_argument("--output", type=Path, help="folder for the training file (default: LVIS's own)")
    parser.add_argument("--split", nargs="+", choices=tuple(COUNTS), default=list(COUNTS), help="default: both")
    parser.add_argument(
        "--no-count-check", dest="count_check", action="store_false", help="the input is a part of LVIS"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), run, argv)


if __name__ == "__main__":
    main()
