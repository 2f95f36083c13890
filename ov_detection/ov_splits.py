"""The open-vocabulary files of COCO 2017 and LVIS v1, made of the official ones; what make_ov_{coco,lvis}.py run."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL, check_links, check_lvis_lists, read_ov_classes

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import shorten
from last_vit.data.coco import read_coco_json

COCO_OUTPUTS = {"train": "instances_train2017_seen_2_65_cat.json", "val": "instances_val2017_all_2.json"}
COCO_IMAGES = {"train": 107_761, "val": 4_836}
_COCO_HINT = "--coco is the folder that holds annotations/ (annotations_trainval2017.zip of cocodataset.org)"
LVIS_OUTPUT = "lvis_v1_train_norare.json"
LVIS_COUNTS = {"train": {"images": 100_170, "annotations": 1_270_141}, "val": {"images": 19_809}}
LVIS_CLASSES = {"r": 337, "c": 461, "f": 405}


def make_ov_coco(args: Namespace) -> None:
    """Make both files and say what is in them; nothing is written before every count has been checked."""
    made = {}
    for split in args.split:
        source = args.coco / "annotations" / f"instances_{split}2017.json"
        with _reading(source, _COCO_HINT) as content:
            made[split] = coco_split(content, split)
        num_images = len(made[split]["images"])
        if args.count_check and num_images != COCO_IMAGES[split]:
            raise ValueError(
                f"{source} gives {num_images:,} images for {split}, the published split has {COCO_IMAGES[split]:,}: "
                "fetch the official file again, or say --no-count-check for a part of COCO"
            )
        print(
            f"{split}: {num_images:,} of {len(content['images']):,} images, {len(made[split]['annotations']):,} of "
            f"{len(content['annotations']):,} annotations, 65 classes"
        )
    folder = args.output or args.coco / "annotations"
    _write({folder / COCO_OUTPUTS[split]: content for split, content in made.items()}, args.count_check)


def coco_split(content: dict[str, Any], split: str) -> dict[str, Any]:
    """COCO's content with 65 categories, annotations of base classes ("train") or of all 65 ("val"), and their images.

    ValueError: Content that does not fit together, or without one of the 65 classes.
    """
    check_links(content)
    used = [entry for entry in content["categories"] if entry.get("name") in (*OV_COCO_BASE, *OV_COCO_NOVEL)]
    lacking = set(OV_COCO_BASE + OV_COCO_NOVEL) - {entry["name"] for entry in used}
    if lacking:
        raise ValueError(f"{len(lacking)} of the 65 classes are not in its categories: {shorten(sorted(lacking))}")
    classes = read_ov_classes(used)
    wanted = classes.base_names if split == "train" else classes.names
    wanted_ids = {entry["id"] for entry in used if entry["name"] in wanted}
    annotations = [entry for entry in content["annotations"] if entry["category_id"] in wanted_ids]
    shown = {entry["image_id"] for entry in annotations}
    return {
        **content,
        "images": [entry for entry in content["images"] if entry["id"] in shown],
        "annotations": annotations,
        "categories": sorted(used, key=lambda entry: entry["id"]),
    }


def make_ov_lvis(args: Namespace) -> None:
    """Make the training file, check the validation file, and say what is in them."""
    made = {}
    for split in args.split:
        source = args.lvis / f"lvis_v1_{split}.json"
        with _reading(source, "--lvis is the folder that holds LVIS v1's files (lvisdataset.org)") as content:
            check_lvis(content, split, args.count_check)
        num_images, num_classes = len(content["images"]), len(content["categories"])
        print(f"{split}: {num_images:,} images, {len(content['annotations']):,} annotations, {num_classes:,} classes")
        if split == "val":
            print(f"{split}: {source} is used as it is")
            continue
        rare = {entry["id"] for entry in content["categories"] if entry["frequency"] == "r"}
        kept = [entry for entry in content["annotations"] if entry["category_id"] not in rare]
        print(f"{split}: {len(kept):,} annotations are of common and frequent classes")
        made[(args.output or args.lvis) / LVIS_OUTPUT] = {**content, "annotations": kept}
    _write(made, args.count_check)


def check_lvis(content: dict[str, Any], split: str, count_check: bool) -> None:
    """Refuse content that is not LVIS v1's.

    ValueError: Parts that do not belong together, no frequencies, images without LVIS's lists, or, where they are
    checked, other counts than the published ones.
    """
    check_links(content)
    classes = read_ov_classes(content["categories"], novel=())
    if not classes.is_lvis:
        raise ValueError("its categories have no frequency: expected LVIS v1's, which say r, c or f")
    check_lvis_lists(content)
    found = {**{what: len(content[what]) for what in LVIS_COUNTS[split]}, **Counter(classes.frequencies)}
    wrong = [
        f"{found.get(what, 0):,} {what} (published: {number:,})"
        for what, number in {**LVIS_COUNTS[split], **LVIS_CLASSES}.items()
        if found.get(what, 0) != number
    ]
    if count_check and wrong:
        raise ValueError(
            f"{'; '.join(wrong)} (r, c, f: classes of that frequency): fetch the official file again, or say "
            "--no-count-check for a part of LVIS"
        )


@contextmanager
def _reading(source: Path, hint: str) -> Iterator[dict[str, Any]]:
    """A file's content, and its name before what the block says against it."""
    if not source.is_file():
        raise FileNotFoundError(f"no {source}: {hint}")
    content = read_coco_json(source)
    try:
        yield content
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _write(made: dict[Path, dict[str, Any]], count_check: bool) -> None:
    for path, content in made.items():
        with atomic_file(path) as file:
            file.write(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())
        print(f"written {path}")
    if not count_check:
        print("the counts were not compared with the published ones (--no-count-check)")
