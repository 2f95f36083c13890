"""Reader of COCO's `instances_*.json`: boxes and categories per image, and masks when they are asked for.

Reads the annotations only; where the images lie is the caller's business. Segmentations are kept as text, one per
image: official ones take a fifth of what they would as Python numbers, and loading processes share it.

Boxes are clipped to their image. COCO's own training sets hold two boxes of height 0 (annotations 918 and 2206849 of
train2017), which cover nothing: such objects are left out and counted in `skipped`. Every other fault is an error.

Letters: I images, M objects of one image.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as mask_tools
from torch import Tensor

_EXPECTED = "expected COCO's instances_*.json: an object with the lists images, annotations and categories"


class CocoObjects(NamedTuple):
    """The annotated objects of one image, in the file's order."""

    boxes_xyxy: Tensor  # float32 [M, 4], pixels, x2 and y2 exclusive
    category_ids: Tensor  # int64 [M], keys of `CocoInstances.categories`
    is_crowd: Tensor  # bool [M], a region with many objects that are not told apart


class CocoInstances:
    """The content of one `instances_*.json`; index i in [0, I) is the image's place in the file.

    `file_names` and `image_hw`, int64 [I, 2] (height, width) in pixels, are per image, `categories` id -> name in the
    file's order, `skipped` the objects that were left out, reason -> count. A ValueError that names file and entry for
    what is not COCO instances, a duplicate image or annotation, an object of an image or a category that the file does
    not list, and a box outside its image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.skipped: Counter[str] = Counter()
        content = read_coco_json(self.path)
        self.categories = self._read_categories(content["categories"])
        index_of = self._read_images(content["images"])
        self._read_annotations(content["annotations"], index_of)

    def __len__(self) -> int:
        return len(self.file_names)

    def objects(self, index: int) -> CocoObjects:
        """Boxes, categories and crowd flags of one image's objects."""
        rows = torch.from_numpy(self._rows[index])
        return CocoObjects(rows[:, :4].float(), rows[:, 4].long(), rows[:, 5].bool())

    def masks(self, index: int) -> Tensor:
        """Masks of one image's objects, in the order of `objects`: bool [M, H, W]; ValueError for a broken one."""
        return self._decode(index, json.loads(self._segmentations[index]), union=False)

    def union_mask(self, index: int, crowd: bool = False) -> Tensor:
        """The pixels of all single objects of one image, or of all crowd regions: bool [H, W]; raises as `masks`."""
        is_crowd = self._rows[index][:, 5]
        every = zip(json.loads(self._segmentations[index]), is_crowd, strict=True)
        return self._decode(index, [segmentation for segmentation, flag in every if flag == crowd], union=True)

    def _decode(self, index: int, segmentations: list[Any], union: bool) -> Tensor:
        try:
            return decode_segmentations(segmentations, *self.image_hw[index].tolist(), union)
        except ValueError as error:
            raise ValueError(f"{self.path}: image {self.file_names[index]}: {error}") from error

    def _read_categories(self, entries: list[Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for place, entry in enumerate(entries):
            with naming_entry(self.path, "categories", place):
                category_id, name = _whole(entry, "id"), str(entry["name"])
                if category_id in categories:
                    raise ValueError(f"id {category_id} is that of {categories[category_id]!r}, too")
                categories[category_id] = name
        return categories

    def _read_images(self, entries: list[Any]) -> dict[int, int]:
        """Image id -> index."""
        names: dict[str, None] = {}
        index_of: dict[int, int] = {}
        sizes = []
        for place, entry in enumerate(entries):
            with naming_entry(self.path, "images", place):
                image_id, name, size = _whole(entry, "id"), entry["file_name"], (entry["height"], entry["width"])
                if not isinstance(name, str) or not name:
                    raise ValueError(f"file_name is {name!r}")
                if min(_whole(entry, "height"), _whole(entry, "width")) < 1:
                    raise ValueError(f"image {name} has {size[1]} x {size[0]} pixels")
                if image_id in index_of or name in names:
                    raise ValueError(f"another image has the id {image_id} or the file_name {name}")
                index_of[image_id], names[name] = place, None
                sizes.append(size)
        if not sizes:
            raise ValueError(f"{self.path} lists no image; {_EXPECTED}")
        self.file_names, self.image_hw = list(names), np.array(sizes, dtype=np.int64)
        return index_of

    def _read_annotations(self, entries: list[Any], index_of: dict[int, int]) -> None:
        sizes = self.image_hw.tolist()
        seen: set[int] = set()
        rows: list[list[tuple[float, ...]]] = [[] for _ in sizes]  # x1, y1, x2, y2, category id, is crowd
        segmentations: list[list[str]] = [[] for _ in sizes]
        for place, entry in enumerate(entries):
            with naming_entry(self.path, "annotations", place):
                number, image_id, category_id = (_whole(entry, name) for name in ("id", "image_id", "category_id"))
                crowd = entry.get("iscrowd", 0)
                if number in seen:
                    raise ValueError(f"another annotation has the id {number}")
                if image_id not in index_of:
                    raise ValueError(f"annotation {number} is of image {image_id}, which the file does not list")
                if category_id not in self.categories:
                    raise ValueError(f"annotation {number} is of category {category_id}, which the file does not list")
                if crowd not in (0, 1):
                    raise ValueError(f"iscrowd is {crowd!r}, expected 0 or 1")
                seen.add(number)
                index = index_of[image_id]
                corners = _corners(entry["bbox"], *sizes[index])
            if corners is None:
                self.skipped["box without area"] += 1
                continue
            rows[index].append((*corners, category_id, crowd))
            segmentations[index].append(json.dumps(entry.get("segmentation"), separators=(",", ":")))
        self._rows = [np.array(each, dtype=np.float64).reshape(-1, 6) for each in rows]
        self._segmentations = [f"[{','.join(each)}]".encode() for each in segmentations]


def read_coco_json(
    path: Path, lists: Sequence[str] = ("images", "annotations", "categories"), expected: str = _EXPECTED
) -> dict[str, Any]:
    """The content of a file like COCO's or LVIS's instances, of which no more is known than its lists.

    FileNotFoundError for no file; ValueError for what is not readable JSON or lacks one of the lists.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {path}; {expected}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); {expected}") from error
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"{path} has no list {' and '.join(missing)}; {expected}")
    return content


def decode_segmentations(segmentations: Sequence[Any], height: int, width: int, union: bool) -> Tensor:
    """Draw segmentations as `encode_segmentation` takes them: bool [M, height, width], the union [height, width]."""
    if not segmentations:
        return torch.zeros((height, width) if union else (0, height, width), dtype=torch.bool)
    codes = [encode_segmentation(segmentation, height, width) for segmentation in segmentations]
    if union:
        return torch.from_numpy(mask_tools.decode(mask_tools.merge(codes))).bool()
    return torch.from_numpy(mask_tools.decode(codes)).permute(2, 0, 1).bool().contiguous()


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One segmentation as pycocotools' compressed run lengths, {"size": [height, width], "counts": bytes}.

    As in `instances_*.json` it is a list of polygons [x1, y1, x2, y2, ...], or a dict with `size` and `counts`, run
    lengths down the columns as a list or in COCO's text form; ValueError where it is none of these, or does not fit.

    pycocotools trusts its input: run lengths that do not fill the image come back as whatever lies in memory, and a
    polygon with a NaN takes the process down. So everything is checked before it gets there.
    """
    if isinstance(segmentation, dict):
        return mask_tools.frPyObjects(_checked_runs(segmentation, height, width), height, width)
    return mask_tools.merge(mask_tools.frPyObjects(_checked_polygons(segmentation, height, width), height, width))


@contextmanager
def naming_entry(path: Path, section: str, place: int, expected: str = _EXPECTED) -> Iterator[None]:
    """Turn what a malformed entry raises into a ValueError that says where it stands."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: {section}[{place}] has no {error.args[0]}; {expected}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {section}[{place}]: {error}") from error


def _whole(entry: dict[str, Any], name: str) -> int:
    value = entry[name]
    if type(value) is not int:  # nor bool, which is an int to isinstance
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    return value


def _corners(bbox: Any, height: int, width: int) -> tuple[float, ...] | None:
    """(x, y, width, height) -> (x1, y1, x2, y2) inside the image; None for a box without area."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise ValueError(f"bbox is {bbox!r}, expected [x, y, width, height]")
    x, y, box_width, box_height = bbox
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + box_width, float(width)), min(y + box_height, float(height))
    if box_width >= 0 and box_height >= 0 and box_width * box_height == 0:
        return None
    if not (x1 < x2 and y1 < y2):  # false for NaN, too
        raise ValueError(f"bbox {bbox} has nothing inside the {width} x {height} image")
    return x1, y1, x2, y2


def _checked_polygons(polygons: Any, height: int, width: int) -> list[list[float]]:
    if not isinstance(polygons, list) or not polygons:
        raise ValueError(f"segmentation {polygons!r:.60} is neither polygons nor run lengths")
    for points in polygons:
        if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
            raise ValueError(f"polygon {points!r:.60} is not a list of at least three points x, y")
        for values, side in ((points[::2], width), (points[1::2], height)):
            # one image's size around the frame is more than any annotation needs; far points take memory
            if not all(isinstance(value, (int, float)) and -side <= value <= 2 * side for value in values):
                raise ValueError(f"polygon {points!r:.60} lies outside the {width} x {height} image")
    return polygons


def _checked_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if size != [height, width]:
        raise ValueError(f"run lengths of a mask of size {size} for an image of [height, width] = {[height, width]}")
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"run lengths {counts!r:.60} are neither text nor a list of whole numbers")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths fill {sum(counts)} of the image's {height * width} pixels")
    return {"size": size, "counts": counts}


def _run_lengths(text: str) -> list[int]:
    """Undo COCO's text form: digits of base 32 from the lowest, signed, from the fourth on as differences.

    A character holds 5 bits above code 48 and, as bit 5, whether more follow.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"run lengths in text form hold the character {character!r}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or not counts:
        raise ValueError("run lengths in text form end in the middle of a number")
    return counts
