"""Where ImageNet's files lie: the split's folder, its images by class, and its XML annotations.

Understands class folders below `<root>/<split>`, the split's folder given directly, the Kaggle archive
(`ILSVRC/Data/CLS-LOC/<split>` with a flat val folder and `LOC_val_solution.csv`), and XML either flat or in class
folders. Opens no image and parses no XML.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from last_vit.data.image_files import IMAGE_SUFFIXES, count_other, list_files
from last_vit.names import imagenet_synsets
from last_vit.runtime import get_logger

SPLITS = ("train", "val")
SYNSETS = "LOC_synset_mapping.txt"
_PLACES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # of the splits, below a data set's root

_EXPECTED = (
    "expected class folders of images, <root>/{split}/<wnid>/*.JPEG, or Kaggle's <root>/ILSVRC/Data/CLS-LOC/{split}. "
    "ImageNet-1k comes from https://image-net.org/download.php or Kaggle's "
    "imagenet-object-localization-challenge"
)


class SplitListing(NamedTuple):
    """The images of a split. `labels` index `classes`; -1 (and no classes) where a flat folder has no labels.

    `others` counts the files that are no images.
    """

    classes: list[str]
    image_paths: list[str]
    labels: list[int]
    empty_classes: list[str]
    others: Counter[str]


def has_split(root: str | Path, split: str) -> bool:
    """Whether a split's folder lies below `root`, in ImageNet's layout or that of Kaggle's archive."""
    return any((Path(root).expanduser() / place / split).is_dir() for place in _PLACES)


def find_split_folder(root: str | Path, split: str) -> Path:
    """The folder that holds the images of a split, one of `SPLITS`.

    `root` has `<split>/` in it, is Kaggle's archive folder, or the folder of this or of the other split itself (then
    the sibling is taken). A split's folder under another name must contain the split's name, so that one folder can
    never pass for both. FileNotFoundError where there is none says what was expected and where to get it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    root = Path(os.path.abspath(Path(root).expanduser()))
    candidates = [root / place / split for place in _PLACES]
    if root.name in SPLITS:
        candidates.append(root.parent / split)
    elif [name for name in SPLITS if name in root.name.lower()] == [split]:
        candidates.append(root)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    state = "has no such split in it" if root.is_dir() else "does not exist"
    raise FileNotFoundError(f"ImageNet root {root} {state} (split {split!r}): {_EXPECTED.format(split=split)}")


def find_folder(root: str | Path) -> Path:
    """A folder that holds class folders of images, as an absolute path; FileNotFoundError where there is none."""
    folder = Path(os.path.abspath(Path(root).expanduser()))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected one that holds a folder of images per class")
    return folder


def list_split(folder: Path, labelled: bool = True) -> SplitListing:
    """List a split's images, in depth, classes numbered in the order of their folders' names (see `sort_classes`).

    With `labelled` False images may stand anywhere; where some stand beside folders, none has a label.

    A folder of images without class folders takes its labels from Kaggle's `LOC_val_solution.csv` and
    `LOC_synset_mapping.txt`, looked for in the folder and up to four above it.
    FileNotFoundError for no image at all; ValueError for images beside class folders (a half-sorted split), and where
    Kaggle's files contradict the images.
    """
    others: Counter[str] = Counter()
    folders, loose = _scan(folder, others)
    if folders and loose and not labelled:
        paths = [str(path) for path in list_files(folder, IMAGE_SUFFIXES)]
        return _say_others(folder, SplitListing([], paths, [-1] * len(paths), [], others))
    if folders and loose:
        raise ValueError(
            f"{folder} holds {len(loose)} images beside {len(folders)} class folders, such as {loose[0]}: sort them "
            "into their class folders (or remove them), for a half-sorted split would be evaluated without them"
        )
    if loose:
        return _say_others(folder, _list_flat(folder, loose, others))
    if (in_order := sort_classes(folders)) != folders:
        get_logger().info("%s: class folders are numbers, taken in numeric order (0, 1, 2, ...)", folder)
        folders = in_order
    image_paths, labels, empty_classes = [], [], []
    for label, name in enumerate(folders):
        images = [str(path) for path in list_files(folder / name, IMAGE_SUFFIXES, others)]
        image_paths += images
        labels += [label] * len(images)
        if not images:
            empty_classes.append(name)
    if not image_paths:
        place = f"the {len(folders)} folders of {folder}, such as {folders[0]}" if folders else str(folder)
        there = f" (there: {_counted(others)})" if others else ""
        raise FileNotFoundError(f"no image in {place}{there}: {_EXPECTED.format(split=folder.name)}")
    return _say_others(folder, SplitListing(folders, image_paths, labels, empty_classes, others))


def sort_classes(folders: Iterable[str]) -> list[str]:
    """Class folders in the order of their labels: as text, as torchvision does; numerically if all are integers."""
    folders = sorted(folders)
    return sorted(folders, key=int) if all(name.isascii() and name.isdecimal() for name in folders) else folders


def number_classes(folder: Path, folders: Sequence[str], num_classes: int) -> list[str]:
    """The classes of a classifier of `num_classes`, in the order of its numbers, for images of some of them.

    Kaggle's `LOC_synset_mapping.txt`, in `folder` or up to four above it, lists the classes, numbered by their sorted
    synsets. Without one of so many, 1000 classes are ImageNet-1k's. ValueError where the class folders, `folders`, are
    not known to be some of that classifier's.
    """
    if len(folders) == num_classes:
        return list(folders)
    mapping = _find_above(folder, SYNSETS)
    own = [] if mapping is None else _read_synsets(mapping)
    for known in (own, imagenet_synsets()):
        if folders and len(known) == num_classes and set(folders) <= set(known):
            return list(known)
    source = f"{SYNSETS} is in neither {folder} nor up to four folders above it, and they are no part of ImageNet-1k"
    if mapping is not None:
        source = f"{mapping} numbers {len(own)} classes, {len(set(folders) & set(own))} of these folders among them"
    raise ValueError(
        f"{folder} has {len(folders)} classes, the classifier {num_classes}: which of its numbers they are is not "
        f"known ({source}). Give a classifier of these classes, or the mapping of its own"
    )


def find_annotation_folder(split_folder: Path, split: str, annotation_root: str | Path | None) -> Path:
    """The folder that holds a split's XML annotations, flat or in class folders; FileNotFoundError for none.

    `annotation_root` is the folder itself, or the `Annotations` folder above it; None looks beside the images.
    """
    if annotation_root is not None:
        root = Path(annotation_root).expanduser()
        candidates = [root / "CLS-LOC" / split, root / split, root]
    else:
        boxes, beside = Path("Annotations", "CLS-LOC", split), split_folder.parent
        places = (boxes, "ILSVRC" / boxes, Path("Annotations", split), Path("Annotations"), Path("bbox", split))
        # Kaggle: ILSVRC/Data/CLS-LOC/<split> has its boxes in ILSVRC/Annotations/CLS-LOC/<split>
        candidates = [beside / place for place in places] + [above / boxes for above in list(beside.parents)[:2]]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no XML boxes for split {split!r}; looked for {', '.join(map(str, candidates))}. Expected there: "
        "<image>.xml or <wnid>/<image>.xml, from ImageNet's ILSVRC2012_bbox_val_v3.tgz (train: "
        "ILSVRC2012_bbox_train_v2.tar.gz) or the Annotations folder of Kaggle's archive. Give the folder "
        "as annotation_root if it lies elsewhere"
    )


def annotation_finder(folder: Path) -> Callable[[str], Path]:
    """A function from an image's path to its XML's: `<wnid>/<image>.xml` if `folder` has class folders, else flat."""
    class_folders = set(_scan(folder)[0])

    def find(image_path: str) -> Path:
        image = Path(image_path)
        wnid = next((above.name for above in image.parents if above.name in class_folders), "")
        return folder / wnid / f"{image.stem}.xml"

    return find


def _scan(folder: Path, others: Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """Sorted names of a folder's visible subfolders and of its images; other files are counted."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                images.append(entry.name)
            elif others is not None:
                count_other(entry.name, others)
    return sorted(folders), sorted(images)


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(others.items()))


def _say_others(folder: Path, listing: SplitListing) -> SplitListing:
    if listing.others:
        get_logger().info("%s: %d images; not read: %s", folder, len(listing.image_paths), _counted(listing.others))
    return listing


def _read_synsets(mapping: Path) -> list[str]:
    return sorted(line.split()[0] for line in mapping.read_text(encoding="utf-8-sig").splitlines() if line.strip())


def _list_flat(folder: Path, images: list[str], others: Counter[str]) -> SplitListing:
    image_paths = [str(folder / image) for image in images]
    solution = _find_above(folder, "LOC_val_solution.csv")
    if solution is None:
        return SplitListing([], image_paths, [-1] * len(images), [], others)
    mapping = _find_above(folder, SYNSETS)
    if mapping is None:
        raise ValueError(f"{solution} gives labels, but {SYNSETS}, which numbers the classes, is not beside it")
    classes = _read_synsets(mapping)
    label_of = {name: label for label, name in enumerate(classes)}
    with solution.open(newline="", encoding="utf-8-sig") as file:
        wnid_of = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    labels = []
    for image in images:
        wnid = wnid_of.get(Path(image).stem)
        if wnid not in label_of:
            raise ValueError(f"{solution} and {mapping} give no class for image {folder / image} (found {wnid!r})")
        labels.append(label_of[wnid])
    return SplitListing(classes, image_paths, labels, [], others)


def _find_above(folder: Path, name: str) -> Path | None:
    places = (above / name for above in (folder, *list(folder.parents)[:4]))
    return next((place for place in places if place.is_file()), None)
