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

import numpy as np
from convert_coco_stuff import ROOT_HELP, convert_raw_maps
from label_conversion import add_conversion_flags, add_target_flags, convert
from seg_id_tables import coco_category_classes, coco_object_table
from seg_layouts import find_split

from last_vit.command_line import command
from last_vit.data.coco import CocoInstances

DATASET, SUFFIX = "coco_object", "_instanceTrainIds.png"


class InstanceLabels:
    """From the index of an image of an instances_*.json to its labels; ValueError for categories not COCO's."""

    def __init__(self, path: Path) -> None:
        self.instances = CocoInstances(path)
        self.class_of = coco_category_classes()
        for category in self.instances.categories:
            if category not in self.class_of:
                name = self.instances.categories[category]
                raise ValueError(f"{path}: category {category} ({name}) is none of COCO's 80")

    def __call__(self, index: int) -> np.ndarray:
        """uint8 [H, W]; larger masks lie below smaller ones."""
        masks = self.instances.masks(index).numpy()
        labels = np.zeros(self.instances.image_hw[index], dtype=np.uint8)
        category_ids = self.instances.objects(index).category_ids.tolist()
        for row in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
            labels[masks[row]] = self.class_of[category_ids[row]]
        return labels


def _run(args: argparse.Namespace) -> None:
    if args.instances is None:
        convert_raw_maps(args, DATASET, SUFFIX, coco_object_table())
        return
    if len(args.split) > 1:
        raise ValueError("--instances is one file of one --split")
    folder = args.output / "annotations" / find_split(DATASET, args.split[0])[0]
    read = InstanceLabels(args.instances)
    names = read.instances.file_names
    sources = {folder / f"{Path(name).stem}{SUFFIX}": index for index, name in enumerate(names)}
    if len(sources) < len(names):
        raise ValueError(f"{args.instances}: {len(names)} images would be written to {len(sources)} names")
    convert(sources, read, DATASET, args.split[0], args)
    for reason, count in read.instances.skipped.items():
        print(f"left out: {count} objects, {reason}")


@command(_run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", type=Path, help=ROOT_HELP)
    source.add_argument("--instances", type=Path, help="instances_val2017.json, in place of raw maps")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
