"""COCO's three ways to write a mask down (polygons, run lengths as numbers, run lengths as text) -> pixels.

pycocotools draws them, but trusts its input: run lengths that do not fill the image come back as whatever lies in
memory, and a polygon with a NaN takes the process down. So everything is checked before it gets there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def decode_segmentations(segmentations: Sequence[Any], height: int, width: int, union: bool) -> Tensor:
    """Draw segmentations.

    Args:
        segmentations: As in `instances_*.json`: a list of polygons [x1, y1, x2, y2, ...], or a dict with `size` and
            `counts`, run lengths down the columns as a list or in COCO's text form.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        union: Draw all into one mask.

    Returns:
        bool [M, height, width], or [height, width] for `union` (empty without segmentations).

    Raises:
        ValueError: A segmentation that is none of these, or does not fit the image.
        ImportError: pycocotools is not installed.
    """
    from pycocotools import mask as mask_tools

    if not segmentations:
        return torch.zeros((height, width) if union else (0, height, width), dtype=torch.bool)
    codes = [encode_segmentation(segmentation, height, width) for segmentation in segmentations]
    if union:
        return torch.from_numpy(mask_tools.decode(mask_tools.merge(codes))).bool()
    return torch.from_numpy(mask_tools.decode(codes)).permute(2, 0, 1).bool().contiguous()


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One segmentation as pycocotools' compressed run lengths, {"size": [height, width], "counts": bytes}.

    Args:
        segmentation: As in `decode_segmentations`.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: As in `decode_segmentations`.
        ImportError: pycocotools is not installed.
    """
    from pycocotools import mask as mask_tools

    if isinstance(segmentation, dict):
        return mask_tools.frPyObjects(_checked_runs(segmentation, height, width), height, width)
    return mask_tools.merge(mask_tools.frPyObjects(_checked_polygons(segmentation, height, width), height, width))


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
