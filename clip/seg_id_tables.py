"""From the ids in official label files to the classes that are evaluated, as tables of 256 entries.

`table[id]` is the class, 255 where the pixel does not count, and `UNKNOWN` where no official file holds the id.
"""

from collections.abc import Mapping

import numpy as np

UNKNOWN = -1
IGNORED = 255

# COCO's ids 1 to 90 name 80 categories; the raw maps of COCO-Stuff hold them less 1, and stuff from 91 to 181.
_UNUSED_STUFF = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_RAW_THINGS = tuple(raw for raw in range(90) if raw not in _UNUSED_STUFF)
_RAW_STUFF = tuple(range(91, 182))

# Official category ids of PASCAL-Context (1 to 459, alphabetical), of the 59 classes in alphabetical order.
CONTEXT59_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
    397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

_CITYSCAPES_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def coco_stuff_table() -> np.ndarray:
    """Raw ids of COCO-Stuff's maps -> 171 classes, 80 things and 91 kinds of stuff: int16 [256]. 255 is ignored."""
    return _table({raw: label for label, raw in enumerate((*_RAW_THINGS, *_RAW_STUFF))} | {255: IGNORED})


def coco_object_table() -> np.ndarray:
    """Raw ids of COCO-Stuff's maps -> 81 classes: int16 [256]. 0 is background, and so is 255: nothing is ignored."""
    return _table(dict.fromkeys((*_RAW_STUFF, 255), 0) | {raw: label for label, raw in enumerate(_RAW_THINGS, start=1)})


def coco_category_classes() -> dict[int, int]:
    """Category ids of COCO's instances_*.json (1 to 90) -> classes 1 to 80 of COCO-Object."""
    return {raw + 1: label for label, raw in enumerate(_RAW_THINGS, start=1)}


def cityscapes_table() -> np.ndarray:
    """Cityscapes' label ids -> 19 classes ("train ids"): int16 [256]; the other 15 labels are ignored."""
    labels = dict.fromkeys(range(34), IGNORED)
    return _table(labels | {label: index for index, label in enumerate(_CITYSCAPES_EVALUATED)})


def apply_table(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look every pixel of uint8 [H, W] up in int16 [256]: uint8 [H, W]; ValueError lists ids that it does not know."""
    found = table[values]
    if found.min(initial=0) < 0:
        unknown = ", ".join(map(str, np.unique(values[found < 0])[:8]))
        raise ValueError(f"it holds the ids {unknown}, which are none of this data set's")
    return found.astype(np.uint8)


def _table(entries: Mapping[int, int]) -> np.ndarray:
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[list(entries)] = list(entries.values())
    return table
