"""From an image to the tensor that a model reads: the evaluation and the training transform.

The evaluation transform is torchvision's own on PIL images (resizing with antialiasing), which published accuracies
were measured with. The training transform does torchvision's on uint8 tensors, decoded by simplejpeg (which is
libjpeg-turbo): the same decoded pixels, the same crops, and resized pixels that differ from Pillow's by less than a
tenth of one of 255 levels on average, in less time (`tools/bench/bench_data.py` measures both).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from last_vit.data.image_files import load_pixels
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

INTERPOLATIONS = ("bilinear", "bicubic")


class EvalTransform:
    """Resize the shorter side, crop the centre, normalise: the field's evaluation transform.

    `resize` is the shorter side's length, `crop` the side of the crop, both in pixels; an image smaller than the crop
    is padded with black. `mean` and `std` are per RGB channel, of values in [0, 1].
    """

    def __init__(
        self,
        resize: int = 256,
        crop: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ) -> None:
        self.resize, self.crop = _check_size("resize", resize), _check_size("crop", crop)
        self.mean, self.std, self.interpolation = tuple(mean), tuple(std), interpolation
        self._transform = transforms.Compose(
            [
                transforms.Resize(resize, _interpolation_mode(interpolation)),
                transforms.CenterCrop(crop),
                transforms.ToTensor(),
                transforms.Normalize(self.mean, self.std),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL RGB image of any size -> float32 [3, crop, crop], normalised."""
        return self._transform(image)


class TrainTransform:
    """Random resized crop, horizontal flip, normalise: the release's training transform.

    All its chance is drawn from torch's CPU generator, as torchvision's RandomResizedCrop and RandomHorizontalFlip draw
    it. Data sets read files with its `load` in place of `load_rgb`. It resizes uint8 pixels, for which torch's kernel
    takes half of Pillow's time. `size` is the side of the result in pixels, `scale` the smallest and largest share of
    the image's area that a crop may take: the default is the release's; small images (Tiny-ImageNet's 64 pixels) are
    better served by a larger minimum, such as 0.35.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: Sequence[float] = (0.08, 1.0),
        interpolation: str = "bilinear",
    ) -> None:
        low, high = scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be (min, max) with 0 < min <= max <= 1 (shares of area), got {tuple(scale)}")
        crop = {"scale": (low, high), "interpolation": _interpolation_mode(interpolation), "antialias": True}
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(_check_size("size", size), **crop),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    @staticmethod
    def load(path: str | Path) -> Tensor:
        """The pixels of `load_rgb`: uint8 [3, height, width], the channels innermost in memory."""
        return torch.from_numpy(load_pixels(path)).permute(2, 0, 1)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """RGB image, PIL or uint8 [3, height, width] -> float32 [3, size, size]."""
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self._transform(pixels).contiguous()


train_transform = TrainTransform  # the name that configs, also those saved with checkpoints, know


def _check_size(name: str, size: int) -> int:
    if size < 1:
        raise ValueError(f"{name} must be a positive number of pixels, got {size}")
    return size


def _interpolation_mode(name: str) -> InterpolationMode:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r}")
    return InterpolationMode(name)
