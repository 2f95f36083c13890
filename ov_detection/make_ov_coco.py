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

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from last_vit.command_line import command_parser, run_command_line

NAME = "make_ov_coco.py"
OUTPUTS = {"train": "instances_train2017_seen_2_65_cat.json", "val": "instances_val2017_all_2.json"}
NUM_IMAGES = {"train": 107_761, "val": 4_836}


def make_split(content: dict[str, Any], split: str) -> dict[str, Any]:
    """The content of one output file.

    Args:
        content: Of COCO's instances file, with all 80 classes.
        split: "train" (annotations of base classes) or "val" (of all 65).

    Returns:
        The same with 65 categories, the split's annotations and the images that have one, each in the file's order.

    Raises:
        ValueError: Content that does not fit together, or without one of the 65 classes.
    """
    from instance_json import check_links
    from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL, read_ov_classes

    from last_vit.checkpoint import shorten

    check_links(content)
    used = [entry for entry in content["categories"] if entry.get("name") in (*OV_COCO_BASE, *OV_COCO_NOVEL)]
    lacking = set(OV_COCO_BASE + OV_COCO_NOVEL) - {entry["name"] for entry in used}
    if lacking:
        raise ValueError(f"{len(lacking)} of the 65 classes are not in its categories: {shorten(sorted(lacking))}")
    classes = read_ov_classes(used)
    wanted = classes.split.base if split == "train" else classes.split.base | classes.split.novel
    wanted_ids = {number for number, is_wanted in zip(classes.category_ids, wanted.tolist(), strict=True) if is_wanted}
    annotations = [entry for entry in content["annotations"] if entry["category_id"] in wanted_ids]
    shown = {entry["image_id"] for entry in annotations}
    return {
        **content,
        "images": [entry for entry in content["images"] if entry["id"] in shown],
        "annotations": annotations,
        "categories": sorted(used, key=lambda entry: entry["id"]),
    }


def run(args: Namespace) -> None:
    """Make the files and say what is in them; nothing is written before every count has been checked."""
    from instance_json import write_instances

    from last_vit.data.coco import read_coco_json

    made = {}
    for split in args.split:
        source = args.coco / "annotations" / f"instances_{split}2017.json"
        if not source.is_file():
            raise FileNotFoundError(
                f"no {source}: --coco is the folder that holds annotations/ (annotations_trainval2017.zip of "
                "cocodataset.org)"
            )
        content = read_coco_json(source)
        try:
            made[split] = make_split(content, split)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        num_images = len(made[split]["images"])
        if args.count_check and num_images != NUM_IMAGES[split]:
            raise ValueError(
                f"{source} gives {num_images:,} images for {split}, the published split has {NUM_IMAGES[split]:,}: "
                "fetch the official file again, or say --no-count-check for a part of COCO"
            )
        print(
            f"{split}: {num_images:,} of {len(content['images']):,} images, {len(made[split]['annotations']):,} of "
            f"{len(content['annotations']):,} annotations, 65 classes"
        )
    folder = args.output or args.coco / "annotations"
    for split, content in made.items():
        write_instances(folder / OUTPUTS[split], content)
        print(f"written {folder / OUTPUTS[split]}")
    if not args.count_check:
        print("the counts were not compared with the published ones (--no-count-check)")


def build_parser() -> ArgumentParser:
    """The command line's flags."""
    parser = command_parser(NAME, __doc__)
    parser.add_argument("--coco", type=Path, required=True, help="folder that holds annotations/")
    parser.add_argument("--output", type=Path, help="folder for the files (default: COCO's annotations/)")
    parser.add_argument("--split", nargs="+", choices=tuple(OUTPUTS), default=list(OUTPUTS), help="default: both")
    parser.add_argument(
        "--no-count-check", dest="count_check", action="store_false", help="the input is a part of COCO"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), run, argv)


if __name__ == "__main__":
    main()
