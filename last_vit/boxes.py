"""The only box arithmetic of the project: areas, overlaps, mask -> box, and boxes through the evaluation transform.

Boxes are xyxy in pixels of one named frame, x2 and y2 exclusive: a box covers the points x1 <= x < x2, y1 <= y < y2 and
its area is (x2 - x1) * (y2 - y1), never + 1. An absent box is four NaN. Which patches a box covers is the metric's
business (metrics/point_in_box.py).

Letters: M boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import box_area as _box_area
from torchvision.ops import box_iou as _box_iou


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area in square pixels: [M, 4] -> [M]; NaN for an absent box."""
    return _box_area(_check_boxes(boxes_xyxy))


def box_iou(boxes_xyxy: Tensor, other_xyxy: Tensor) -> Tensor:
    """Intersection over union of every pair: [M, 4], [L, 4] -> [M, L] in [0, 1]; NaN for two boxes without area."""
    return _box_iou(_check_boxes(boxes_xyxy), _check_boxes(other_xyxy))


def mask_to_box(mask: Tensor) -> Tensor:
    """Tightest box around the true pixels of each mask.

    Args:
        mask: bool [..., H, W].

    Returns:
        float32 [..., 4] in the mask's pixels; four NaN for a mask without a true pixel.

    Raises:
        ValueError: If `mask` is not boolean or has fewer than two dimensions.

    Example:
        >>> mask_to_box(torch.tensor([[False, True, True], [False, False, False]]))
        tensor([1., 0., 3., 1.])
    """
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(f"mask must be bool [..., H, W], got {mask.dtype} {tuple(mask.shape)}; threshold it first")
    x1, x2 = _extent(mask.any(dim=-2))
    y1, y2 = _extent(mask.any(dim=-1))
    boxes = torch.stack([x1, y1, x2, y2], dim=-1).float()
    return boxes.masked_fill(~mask.flatten(-2).any(dim=-1, keepdim=True), float("nan"))


def resize_crop_box(boxes_xyxy: Tensor, image_hw: Tensor, resize: int, crop: int) -> Tensor:
    """Map boxes from the original image to the input that torchvision's Resize and CenterCrop make of it.

    Follows their rounding: the shorter side becomes `resize`, the longer one `int(resize * long / short)`, each axis is
    scaled by its own ratio, and the crop starts at `round(margin / 2)` with halves rounded to even (or, where the image
    is smaller than the crop, behind a padding of `(crop - side) // 2`). The result is not clipped to the crop.

    Args:
        boxes_xyxy: [M, 4], pixels of the original images.
        image_hw: [M, 2], (height, width) of the original images in pixels.
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the centre crop, in pixels.

    Returns:
        float64 [M, 4], pixels of the crop; NaN stays NaN.

    Raises:
        ValueError: Wrong shapes, or sizes that are not positive.

    Example:
        >>> resize_crop_box(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([[64, 64]]), resize=256, crop=224)
        tensor([[-16., -16., 240., 240.]], dtype=torch.float64)
    """
    _check_boxes(boxes_xyxy)
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
    """Raise ValueError unless `image_hw` is [M, 2] for the M boxes and both transform sizes are positive."""
    if image_hw.shape != (boxes_xyxy.shape[0], 2):
        raise ValueError(
            f"image_hw must be [M, 2] (height, width) for M = {boxes_xyxy.shape[0]} boxes, got {tuple(image_hw.shape)}"
        )
    if resize < 1 or crop < 1:
        raise ValueError(f"resize and crop must be positive pixels, got resize={resize}, crop={crop}")


def _check_boxes(boxes_xyxy: Tensor) -> Tensor:
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise ValueError(f"boxes must be [M, 4] as (x1, y1, x2, y2), got {tuple(boxes_xyxy.shape)}")
    return boxes_xyxy


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First true index and one past the last along the last axis: bool [..., L] -> two long [...]."""
    hits = line.to(torch.uint8)
    return hits.argmax(dim=-1), line.shape[-1] - hits.flip(-1).argmax(dim=-1)
