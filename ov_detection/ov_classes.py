"""Which classes of a detection set are base (trained on) and which are novel (only named at test time).

Labels are counted in the order of ascending category id, whatever the file's order: class embeddings, detectors and
metrics all use this one order. Where the split comes from, by what the categories look like:

- LVIS (every category has a frequency): rare ones are novel, common and frequent ones base, 337 and 866 of v1's 1203.
- COCO: the 48 base and 17 novel classes of the open-vocabulary split (Bansal et al., ECCV 2018). The other 15 of COCO's
  80 classes are not used: ov_detection/make_ov_coco.py removes them.
- Any other set: the caller names the novel classes.

Letters: C classes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from class_embeddings import ClassSplit

from last_vit.checkpoint import shorten

OV_COCO_BASE = (
    "person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear",
    "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed",
    "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book", "clock",
    "vase", "toothbrush",
)  # fmt: skip
OV_COCO_NOVEL = (
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife",
    "cake", "couch", "keyboard", "sink", "scissors",
)  # fmt: skip
FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True)
class OvClasses:
    """The classes of a detection set, label c in [0, C) being the c-th smallest category id.

    Attributes:
        names: One per class, as the file spells it.
        category_ids: One per class, ascending.
        split: Base and novel classes.
        frequencies: "r", "c" or "f" per class (LVIS); None elsewhere.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    split: ClassSplit
    frequencies: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_lvis(self) -> bool:
        """Whether the classes have LVIS's frequencies, and their images LVIS's lists of absent classes."""
        return self.frequencies is not None

    @cached_property
    def label_of(self) -> dict[int, int]:
        """Category id -> label."""
        return {category_id: label for label, category_id in enumerate(self.category_ids)}


def read_ov_classes(categories: Sequence[Mapping[str, Any]], novel: Iterable[str] | None = None) -> OvClasses:
    """The classes that a file's list `categories` describes.

    Args:
        categories: Entries with id and name, and LVIS's with frequency.
        novel: Names of the novel classes, all others being base; None takes them from LVIS's frequencies or COCO's
            split, () makes every class base.

    Returns:
        The classes.

    Raises:
        ValueError: No category, an entry without id or name, two of one id or name, an unknown frequency, a novel name
            that is none of the classes, or a split that cannot be told.
    """
    found = sorted((_id_and_name(entry, place) for place, entry in enumerate(categories)), key=lambda pair: pair[0])
    if not found:
        raise ValueError("the list of categories is empty: a detector needs at least one class")
    category_ids, names = zip(*found, strict=True)
    for what, values in (("id", category_ids), ("name", names)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"categories share the {what} {shorten(map(repr, twice))}: each must have its own")
    frequencies = _frequencies(categories)
    if novel is not None:
        is_novel = _named(names, tuple(novel))
    elif frequencies is not None:
        is_novel = [frequency == "r" for frequency in frequencies]
    else:
        is_novel = _coco_novel(names)
    novel_mask = torch.tensor(is_novel)
    return OvClasses(names, category_ids, ClassSplit(~novel_mask, novel_mask), frequencies)


def _id_and_name(entry: Any, place: int) -> tuple[int, str]:
    category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
    if type(category_id) is not int or not isinstance(name, str) or not name:
        raise ValueError(f"categories[{place}] must have a whole number as id and a name, got {entry!r}")
    return category_id, name


def _frequencies(categories: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """By ascending id; None when no category has one."""
    found = [entry.get("frequency") for entry in sorted(categories, key=lambda entry: entry["id"])]
    if all(frequency is None for frequency in found):
        return None
    wrong = [frequency for frequency in found if frequency not in FREQUENCIES]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} categories have no known frequency (such as {wrong[0]!r}): LVIS's are "
            f"{', '.join(FREQUENCIES)} (rare, common, frequent)"
        )
    return tuple(found)


def _named(names: Sequence[str], novel: tuple[str, ...]) -> list[bool]:
    unknown = [name for name in novel if name not in names]
    if unknown:
        raise ValueError(f"novel classes that the file does not have: {shorten(unknown)}; it has {shorten(names)}")
    return [name in novel for name in names]


def _coco_novel(names: Sequence[str]) -> list[bool]:
    unknown = [name for name in names if name not in OV_COCO_BASE and name not in OV_COCO_NOVEL]
    if unknown:
        raise ValueError(
            f"cannot tell base from novel: {len(unknown)} of {len(names)} classes are neither in OV-COCO's 48 + 17 nor "
            f"have LVIS's frequency, such as {shorten(unknown, 4)}; make COCO's files with "
            "ov_detection/make_ov_coco.py, or name the novel classes of your own set"
        )
    return [name in OV_COCO_NOVEL for name in names]
