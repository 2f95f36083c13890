"""What COCO's and LVIS's JSON files of instances say: their classes, base or novel, and whether their parts fit.

Labels are counted in the order of ascending category id, whatever the file's order: class embeddings, detectors and
metrics all use this one order. Base classes are trained on, novel ones only named at test time:

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from last_vit.checkpoint import shorten
from last_vit.data.coco import read_coco_json

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
    """The classes of a detection set, label c in [0, C) being the c-th smallest category id."""

    names: tuple[str, ...]  # as the file spells them
    category_ids: tuple[int, ...]  # ascending
    is_base: Tensor  # bool [C]; all others are novel
    frequencies: tuple[str, ...] | None  # "r", "c" or "f" per class (LVIS); None elsewhere

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

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the base classes, in the order of their labels."""
        return tuple(name for name, base in zip(self.names, self.is_base.tolist(), strict=True) if base)


def read_ov_classes(categories: Sequence[Mapping[str, Any]], novel: Iterable[str] | None = None) -> OvClasses:
    """The classes that a file's list `categories` describes.

    Entries have id and name, and LVIS's frequency. `novel` are names of the novel classes, all others being base; None
    takes them from LVIS's frequencies or COCO's split, () makes every class base. ValueError for a broken entry, two of
    one id or name, an unknown novel class, or a split that cannot be told.
    """
    for place, entry in enumerate(categories):
        fields = entry if isinstance(entry, Mapping) else {}
        if type(fields.get("id")) is not int or not isinstance(fields.get("name"), str) or not fields["name"]:
            raise ValueError(f"categories[{place}] must have a whole number as id and a name, got {entry!r}")
    if not categories:
        raise ValueError("the list of categories is empty: a detector needs at least one class")
    entries = sorted(categories, key=lambda entry: entry["id"])
    for what in ("id", "name"):
        twice = [value for value, count in Counter(entry[what] for entry in entries).items() if count > 1]
        if twice:
            raise ValueError(f"categories share the {what} {shorten(map(repr, twice))}: each must have its own")
    names, frequencies = tuple(entry["name"] for entry in entries), _frequencies(entries)
    if novel is not None:
        novel = set(novel)
        if novel - set(names):
            unknown = shorten(sorted(novel - set(names)))
            raise ValueError(f"novel classes that the file does not have: {unknown}; it has {shorten(names)}")
    elif frequencies is not None:
        novel = {name for name, frequency in zip(names, frequencies, strict=True) if frequency == "r"}
    else:
        novel, unknown = OV_COCO_NOVEL, [name for name in names if name not in OV_COCO_BASE + OV_COCO_NOVEL]
        if unknown:
            raise ValueError(
                f"cannot tell base from novel: {len(unknown)} of {len(names)} classes are neither in OV-COCO's 48 + 17 "
                f"nor have LVIS's frequency, such as {shorten(unknown, 4)}; make COCO's files with "
                "ov_detection/make_ov_coco.py, or name the novel classes of your own set"
            )
    is_base = torch.tensor([name not in novel for name in names])
    return OvClasses(names, tuple(entry["id"] for entry in entries), is_base, frequencies)


def _frequencies(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    found = [entry.get("frequency") for entry in entries]
    if all(frequency is None for frequency in found):
        return None
    wrong = [frequency for frequency in found if frequency not in FREQUENCIES]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} categories have no known frequency (such as {wrong[0]!r}): LVIS's are "
            f"{', '.join(FREQUENCIES)} (rare, common, frequent)"
        )
    return tuple(found)


def read_instances(json_file: Path, novel: Iterable[str] | None = None) -> tuple[dict[str, Any], OvClasses]:
    """The content of a COCO or LVIS file whose parts fit together, and its classes; `novel` as in `read_ov_classes`.

    FileNotFoundError: No such file. ValueError: From `read_coco_json`, `check_links`, `read_ov_classes` or
    `check_lvis_lists`; it names the file.
    """
    content = read_coco_json(json_file)
    try:
        check_links(content)
        classes = read_ov_classes(content["categories"], novel)
        if classes.is_lvis:
            check_lvis_lists(content)
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}") from error
    return content, classes


def check_same_classes(first: OvClasses, second: OvClasses) -> None:
    """Refuse sets whose labels do not mean the same: other names, another order or split are a ValueError."""
    if first.names != second.names or first.base_names != second.base_names:
        differing = sorted(set(first.names) ^ set(second.names))[:5]
        raise ValueError(
            f"labels would not mean the same: the sets have {len(first)} and {len(second)} classes, or another order "
            f"or split{f' (such as {differing})' if differing else ''}; make both files with the same tool"
        )


def check_links(content: Mapping[str, Any]) -> None:
    """Refuse what `read_coco_json` gave if its parts do not belong together; only ids are looked at.

    ValueError: No image, an image or annotation without id of its own, an annotation of what is not listed.
    """
    images = _ids(content["images"], "images")
    if not images:
        raise ValueError("the list of images is empty")
    _ids(content["annotations"], "annotations")
    categories = {entry.get("id") for entry in content["categories"] if isinstance(entry, Mapping)}
    for what, known in (("image_id", images), ("category_id", categories)):
        lost = [entry["id"] for entry in content["annotations"] if entry.get(what) not in known]
        if lost:
            raise ValueError(f"{len(lost)} annotations have an unknown {what}, such as annotation {shorten(lost, 3)}")


def check_lvis_lists(content: Mapping[str, Any]) -> None:
    """Refuse LVIS's content without the lists of what is known to be absent, or not fully annotated, per image.

    LVIS annotates a few classes per image only: without the lists, a detection of any other class would be counted as
    wrong, or not be counted, without anyone knowing. So an image that lacks one is a ValueError.
    """
    for name in ("neg_category_ids", "not_exhaustive_category_ids"):
        bad = [entry.get("id") for entry in content["images"] if not isinstance(entry.get(name), list)]
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(content['images'])} images have no list {name} (such as image "
                f"{shorten(bad, 3)}), without which LVIS's metrics are undefined: take the official lvis_v1_*.json"
            )


def _ids(entries: list[Any], what: str) -> set[int]:
    numbers = [entry.get("id") if isinstance(entry, Mapping) else None for entry in entries]
    for place, number in enumerate(numbers):
        if type(number) is not int:
            raise ValueError(f"{what}[{place}] has no whole number as id: {shorten([entries[place]])[:200]}")
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise ValueError(
            f"{what} share ids, {len(twice)} of them such as {shorten(twice, 3)}: "
            + ("number them anew, as docs/data.md shows" if what == "annotations" else "keep one entry of each")
        )
    return set(numbers)
