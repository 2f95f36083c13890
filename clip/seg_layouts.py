"""Where the segmentation benchmarks keep images and labels: their official archives' layouts and mmsegmentation's.

Of labels the first that is there: converted (`*TrainIds.png`) before raw maps, whose official ids are read through a
table; Context's annotations are one JSON file and need clip/convert_context59.py. Below a root the first of a layout's
folders that holds it counts. The layouts are in seg_layouts.json, for people in docs/data.md; "custom" is a folder of
one's own.
"""

import json
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from seg_id_tables import cityscapes_table, coco_object_table, coco_stuff_table

from last_vit.data.image_files import IMAGE_SUFFIXES, list_files, pair_by_name
from last_vit.data.voc import VocSplit, is_voc_folder

_TABLES = {"cityscapes": cityscapes_table, "coco_object": coco_object_table, "coco_stuff": coco_stuff_table}


class LabelSource(NamedTuple):
    """One way in which labels lie; "{split}" in the folder stands for the layout's own word for a split."""

    folder: str  # below the root
    suffix: str = ".png"  # end of the files' names
    table: str | None = None  # from their ids to classes, a key of `_TABLES`; None where they hold classes


class Layout(NamedTuple):
    """Where one data set lies."""

    splits: dict[str, tuple[str, int]]  # split -> (the layout's word for it, official number of images)
    expected: str  # what a root should hold and where it comes from, for error messages
    labels: list[LabelSource]  # in order of preference
    below: tuple[str, ...] = ("",)  # folders below a root that may be the actual root; "" is the root
    images: tuple[str, ...] = ()  # candidates for the folder of images; of a VOC folder the listing instead
    image_suffix: str = ".jpg"
    listing: str | None = None  # ImageSets' folder of lists, for VOC folders


class SegmentationFiles(NamedTuple):
    """The files of one split."""

    images: list[Path]
    labels: list[Path]
    names: list[str]  # paths of the images below their folder, without ending
    table: np.ndarray | None = None  # from the labels' ids to classes; None where they hold classes


def _read_layouts() -> dict[str, Layout]:
    content = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found = {name: content[each] if isinstance(each, str) else each for name, each in content.items()}
    return {
        name: Layout(**{**each, "labels": [LabelSource(*source) for source in each["labels"]]})
        for name, each in found.items()
    }


LAYOUTS = _read_layouts()


def find_split(dataset: str, split: str) -> tuple[str, int]:
    """A layout's own word for a split, and the official number of images; ValueError for another split."""
    splits = LAYOUTS[dataset].splits
    if split not in splits:
        raise ValueError(f"split of {dataset} must be one of {', '.join(splits)}, got {split!r}")
    return splits[split]


def find_files(dataset: str, root: str | Path, split: str) -> SegmentationFiles:
    """The images of a split and their labels; `root` is the data set's folder, or the one its archive unpacks to.

    FileNotFoundError for a wrong root, no images, or images without labels; ValueError for labels without images.
    """
    word, _ = find_split(dataset, split)
    layout, root = LAYOUTS[dataset], Path(root).expanduser()
    if layout.listing is not None:
        return _listed_files(layout, root, word)
    for folder in (root / below for below in layout.below):
        candidates = [folder / name.format(split=word) for name in layout.images]
        images = next((found for each in candidates if (found := named_files(each, layout.image_suffix))), None)
        if images is not None:
            return _pair(layout, folder, word, images)
    state = f"holds no images of {word}" if root.is_dir() else "does not exist"
    raise FileNotFoundError(f"{dataset} root {root} {state}; expected {layout.expected}")


def find_custom_files(root: str | Path, split: str) -> SegmentationFiles:
    """The files of a folder of one's own: a VOC folder, or images/ and labels/, or those with a folder of the split.

    Labels are PNG and have their image's name. Raises as `find_files`.
    """
    root = Path(root).expanduser()
    if (root / "JPEGImages").is_dir():
        return _listed_files(LAYOUTS["voc21"], root, split)
    layout, below = LAYOUTS["custom"], split if (root / "images" / split).is_dir() else ""
    folder = root / "images" / below
    images = {path.relative_to(folder).with_suffix(""): path for path in list_files(folder, IMAGE_SUFFIXES)}
    if not images:
        state = f"holds no images in {folder.relative_to(root)}/" if root.is_dir() else "does not exist"
        raise FileNotFoundError(f"segmentation root {root} {state}; expected {layout.expected}")
    return _pair(layout, root, below, images)


def _listed_files(layout: Layout, root: Path, word: str) -> SegmentationFiles:
    """Of a VOC folder, whose lists say which images belong to a split."""
    found = next((root / below for below in layout.below if is_voc_folder(root / below)), root)
    try:
        split = VocSplit(found, word, layout.listing)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; expected {layout.expected}") from error
    labels = [found / layout.labels[0].folder / f"{stem}.png" for stem in split.stems]
    there = {path.name for path in labels[0].parent.glob("*.png")}
    _check_missing([path for path in labels if path.name not in there], len(labels), layout)
    return SegmentationFiles([split.image_path(index) for index in range(len(split))], labels, list(split.stems))


def _pair(layout: Layout, root: Path, word: str, images: dict[PurePath, Path]) -> SegmentationFiles:
    """The labels of images, from the first source that has any."""
    folders = [(source, root / source.folder.format(split=word)) for source in layout.labels]
    for source, folder in folders:
        labels = named_files(folder, source.suffix)
        if labels:
            break
    else:
        looked = ", ".join(f"{folder}/**/*{source.suffix}" for source, folder in folders)
        raise FileNotFoundError(f"no labels in {looked}; expected {layout.expected}")
    names = list(images)
    pairs = pair_by_name(names, list(labels), with_ending=True)
    missing = [folder / f"{name}{source.suffix}" for name, pair in zip(names, pairs, strict=True) if pair is None]
    _check_missing(missing, len(names), layout)
    paths = list(labels.values())
    unused = sorted(set(range(len(paths))).difference(pairs))
    if unused:
        raise ValueError(
            f"{len(unused)} of the {len(paths)} labels in {folder} have no image, such as {paths[unused[0]]}"
        )
    table = _TABLES[source.table]() if source.table is not None else None
    return SegmentationFiles(list(images.values()), [paths[pair] for pair in pairs], [str(n) for n in names], table)


def _check_missing(missing: list[Path], total: int, layout: Layout) -> None:
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {total} images have no label, such as {missing[0]}; expected {layout.expected}"
        )


def named_files(folder: Path, suffix: str) -> dict[PurePath, Path]:
    """Path below the folder without `suffix` -> file, sorted. Raw maps (".png") are not the converted ones beside."""
    files = list_files(folder, (suffix.lower(),))
    if suffix == ".png":
        files = [path for path in files if not path.name.endswith("TrainIds.png")]
    return {path.relative_to(folder).with_name(path.name[: -len(suffix)]): path for path in files}
