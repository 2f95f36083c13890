"""Images as the segmentation protocols give them to a model: resized as mmcv does.

The published protocols resize with mmcv's `imrescale`, whose bilinear interpolation does not smooth before shrinking;
an antialiased resize gives other results. Only the image is resized; labels stay at their own size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

MAX_LONG_SIDE = 2048


def resize_short_side(image: Tensor, short_side: int, max_long_side: int = MAX_LONG_SIDE) -> Tensor:
    """Bring the shorter side to a length, aspect kept, unless the longer one would then pass its limit.

    Sizes and interpolation are mmcv's (bilinear, corners not aligned, no antialias). OpenCV, behind mmcv, rounds its
    weights to 11 bits, so single values may differ from it by 1.

    Args:
        image: uint8 [3, H, W].
        short_side: In pixels.
        max_long_side: In pixels; where it binds, the shorter side is shorter.

    Returns:
        uint8 [3, H', W'].

    Raises:
        ValueError: Another shape or type.

    Example:
        >>> resize_short_side(torch.zeros(3, 375, 500, dtype=torch.uint8), 336).shape
        torch.Size([3, 336, 448])
    """
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"image must be uint8 [3, H, W], got {image.dtype} {tuple(image.shape)}")
    sides = image.shape[1:]
    factor = min(max_long_side / max(sides), short_side / min(sides))
    size = tuple(max(1, int(side * factor + 0.5)) for side in sides)
    if size == tuple(sides):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)
    return resized[0].add_(0.5).to(torch.uint8)


class ResizedImages(Dataset):
    """A segmentation set whose samples have `resized`, uint8 [3, H', W'], the image as the model sees it, for `image`.

    The original is left out: it would be the largest thing that goes from loading processes to a GPU, for nothing.

    Args:
        images: Samples are dicts with `image` uint8 [3, H, W], `label` and `index`.
        short_side: As in `resize_short_side`.
    """

    def __init__(self, images: Dataset, short_side: int) -> None:
        self.images = images
        self.short_side = short_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.images[index])
        return {"resized": resize_short_side(sample.pop("image"), self.short_side), **sample}
