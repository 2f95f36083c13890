"""The only box arithmetic of the project: areas, overlaps, small boxes, boxes around patches, through a transform.

Boxes are xyxy in pixels of one named frame, x2 and y2 exclusive: a box covers the points x1 <= x < x2, y1 <= y < y2 and
its area is (x2 - x1) * (y2 - y1), never + 1. An absent box is four NaN. Which patches a box covers is the metric's
business (metrics/point_in_box.py).

Letters: M boxes.
"""

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

__all__ = ["Box", "box_area", "box_iou", "check_image_hw", "is_small_box", "largest_component", "patch_box"]
__all__ += ["resize_crop_box"]

Box = tuple[float, float, float, float]


def is_small_box(boxes_xyxy: Tensor, image_hw: Tensor, max_box_area: float) -> Tensor:
    """Which boxes ([M, 4]) take less than this share of their image (int [M, 2]): bool [M]; false for an absent box."""
    return box_area(boxes_xyxy.double()) < max_box_area * image_hw.double().prod(dim=1)


def resize_crop_box(boxes_xyxy: Tensor, image_hw: Tensor, resize: int, crop: int) -> Tensor:
    """Map boxes from the original image to the input that torchvision's Resize and CenterCrop make of it.

    Follows their rounding: the shorter side becomes `resize`, the longer one `int(resize * long / short)`, each axis is
    scaled by its own ratio, and the crop starts at `round(margin / 2)` with halves rounded to even (or, where the image
    is smaller than the crop, behind a padding of `(crop - side) // 2`). Boxes are [M, 4] in pixels of the original
    images, `image_hw` [M, 2] their (height, width): float64 [M, 4], pixels of the crop, not clipped to it; NaN stays.

    Example:
        >>> resize_crop_box(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([[64, 64]]), resize=256, crop=224)
        tensor([[-16., -16., 240., 240.]], dtype=torch.float64)
    """
    check_image_hw(image_hw, boxes_xyxy, resize, crop)
    size = image_hw.double()
    short = size.amin(dim=1, keepdim=True)
    resized = torch.where(size == short, float(resize), (resize * size / short).floor())
    margin = resized - crop
    # torch.round rounds halves to even, as Python's round in CenterCrop does
    offset = torch.where(margin >= 0, (margin / 2).round(), (margin / 2).ceil())
    scale = resized / size
    return boxes_xyxy.double() * scale.flip(1).repeat(1, 2) - offset.flip(1).repeat(1, 2)


def check_image_hw(image_hw: Tensor, boxes_xyxy: Tensor, resize: int, crop: int) -> None:
    """Raise ValueError unless boxes are [M, 4], `image_hw` is [M, 2] and both transform sizes are positive."""
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise ValueError(f"boxes must be [M, 4] as (x1, y1, x2, y2), got {tuple(boxes_xyxy.shape)}")
    if image_hw.shape != (boxes_xyxy.shape[0], 2):
        raise ValueError(
            f"image_hw must be [M, 2] (height, width) for M = {boxes_xyxy.shape[0]} boxes, got {tuple(image_hw.shape)}"
        )
    if resize < 1 or crop < 1:
        raise ValueError(f"resize and crop must be positive pixels, got resize={resize}, crop={crop}")


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a bool [h, w] mask, the first of equals; empty for an empty mask."""
    labels, _ = scipy.ndimage.label(mask)
    return mask & (labels == np.bincount(labels.ravel(), minlength=2)[1:].argmax() + 1)


def patch_box(mask: np.ndarray, patch_size: int, image_hw: tuple[int, int], clip: bool = True) -> Box:
    """Tight box around the patches of a mask, bool [h, w]; the grid covers the image padded at the right and bottom.

    `clip` ends the box where the unpadded image does; LOST and TokenCut do, DINO-seg as published does not.
    """
    if not mask.any():
        raise ValueError("a box needs at least one patch, and the mask has none")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x1, y1, x2, y2 = (float(patch_size * edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    height, width = map(float, image_hw)
    return (x1, y1, min(x2, width), min(y2, height)) if clip else (x1, y1, x2, y2)
