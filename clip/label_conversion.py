"""What the label converters do: files in parallel, whole or not there, skipped when done, counted at the end.

Finished files are found by their names, so a stopped run goes on where it was; --overwrite does all again.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from seg_id_tables import apply_table, cityscapes_table, coco_category_classes, coco_object_table, coco_stuff_table
from seg_layouts import find_split, named_files
from torch.utils.data import Dataset

from last_vit.atomic_file import atomic_file
from last_vit.data.coco import CocoInstances
from last_vit.data.image_files import load_mask
from last_vit.evaluation import open_loader

_RAW_FOLDERS = ("stuffthingmaps", "annotations", ".")
_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


class Conversion(Dataset):
    """Files to make, of which an item makes one: (what to read, target), by `read`, to labels uint8 [H, W]."""

    def __init__(self, pairs: list[tuple[Any, Path]], read: Callable[[Any], np.ndarray]) -> None:
        self.pairs, self.read = pairs, read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Path:
        source, target = self.pairs[index]
        labels = Image.fromarray(self.read(source))
        with atomic_file(target) as file:
            labels.save(file, format="PNG")
        return target


def convert(
    sources: Mapping[Path, Any], read: Callable[[Any], np.ndarray], dataset: str, split: str, args: argparse.Namespace
) -> None:
    """Make all files, target -> what to read, in --num-workers processes, and print the counts.

    ValueError for another number than the official one without --any-count, and a file that cannot be read.
    """
    what, official = f"{dataset} {split}", find_split(dataset, split)[1]
    if len(sources) != official and not args.any_count:
        raise ValueError(
            f"{what}: found {len(sources)} files (the official set has {official}); to convert a part: --any-count"
        )
    waiting = [(source, target) for target, source in sources.items() if args.overwrite or not target.is_file()]
    for _ in open_loader(Conversion(waiting, read), what, batch_size=1, num_workers=args.num_workers, collate=list):
        pass
    print(
        f"{what}: {len(sources)} files found (the official set has {official}), {len(sources)} converted: "
        f"{len(waiting)} now, {len(sources) - len(waiting)} before"
    )


def look_up(path: Path, table: np.ndarray) -> np.ndarray:
    """A one-channel PNG of raw ids -> classes, uint8 [H, W], by a table of seg_id_tables.py; errors name the file."""
    values = load_mask(path)
    try:
        return apply_table(values.astype(np.uint8), table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_cityscapes(args: argparse.Namespace) -> None:
    """The command convert_cityscapes.py."""
    for split in args.split:
        folder = args.root / "gtFine" / split
        maps = named_files(folder, _LABEL_IDS)
        if not maps:
            raise FileNotFoundError(f"no *{_LABEL_IDS} below {folder}; expected Cityscapes' gtFine_trainvaltest.zip")
        sources = {args.output / "gtFine" / split / f"{name}{_TRAIN_IDS}": path for name, path in maps.items()}
        convert(sources, partial(look_up, table=cityscapes_table()), "cityscapes", split, args)


def convert_coco_stuff(args: argparse.Namespace) -> None:
    """The command convert_coco_stuff.py."""
    _convert_raw_maps(args, "coco_stuff", "_labelTrainIds.png", coco_stuff_table())


def convert_coco_object(args: argparse.Namespace) -> None:
    """The command convert_coco_object.py."""
    dataset, suffix = "coco_object", "_instanceTrainIds.png"
    if args.instances is None:
        _convert_raw_maps(args, dataset, suffix, coco_object_table())
        return
    if len(args.split) > 1:
        raise ValueError("--instances is one file of one --split")
    folder = args.output / "annotations" / find_split(dataset, args.split[0])[0]
    read = InstanceLabels(args.instances)
    names = read.instances.file_names
    sources = {folder / f"{Path(name).stem}{suffix}": index for index, name in enumerate(names)}
    if len(sources) < len(names):
        raise ValueError(f"{args.instances}: {len(names)} images would be written to {len(sources)} names")
    convert(sources, read, dataset, args.split[0], args)
    for reason, count in read.instances.skipped.items():
        print(f"left out: {count} objects, {reason}")


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


def _convert_raw_maps(args: argparse.Namespace, dataset: str, suffix: str, table: np.ndarray) -> None:
    """COCO-Stuff's maps of all --split by a table; `suffix` ends the written names."""
    for split in args.split:
        folders = [args.root / name / find_split(dataset, split)[0] for name in _RAW_FOLDERS]
        maps = next((found for folder in folders if (found := named_files(folder, ".png"))), None)
        if maps is None:
            raise FileNotFoundError(
                f"no raw maps (*.png) in {', '.join(map(str, folders))}; expected stuffthingmaps_trainval2017.zip's"
            )
        target = args.output / "annotations" / folders[0].name
        sources = {target / f"{name.name}{suffix}": path for name, path in maps.items()}
        convert(sources, partial(look_up, table=table), dataset, split, args)
