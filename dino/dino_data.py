"""Images to train on, and DINO's multi-crop views of them: two large and several small ones, each distorted anew."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.synthetic import SyntheticObjects
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from last_vit.runtime import get_logger

SYNTHETIC = "synthetic"
_NUM_SYNTHETIC = 1024


class MultiCropAugmentation:
    """PIL RGB image -> list of views, float32 [3, side, side], ImageNet-normalised, the two global ones first.

    All chance is drawn from torch's CPU generator. A scale is the smallest and largest share of the image's area that a
    crop takes, a size its side in pixels.
    """

    def __init__(
        self,
        global_crops_scale: Sequence[float],
        local_crops_scale: Sequence[float],
        local_crops_number: int,
        global_crop_size: int = 224,
        local_crop_size: int = 96,
    ) -> None:
        first = _view(global_crop_size, global_crops_scale, blurred=1.0)
        second = _view(global_crop_size, global_crops_scale, blurred=0.1, solarize=0.2)
        local = _view(local_crop_size, local_crops_scale, blurred=0.5)
        self.views = (first, second, *[local] * local_crops_number)

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """The views of one image."""
        return [view(image) for view in self.views]


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur of a radius drawn from [0.1, 2] pixels."""
    return image.filter(ImageFilter.GaussianBlur(0.1 + (2.0 - 0.1) * torch.rand(()).item()))


def _view(side: int, scale: Sequence[float], blurred: float, solarize: float = 0.0) -> Callable[[Image.Image], Tensor]:
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=blurred),
            *([transforms.RandomSolarize(128, p=solarize)] if solarize else []),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def open_training_images(data_path: str, transform: Callable[[Image.Image], Any], skip_broken: bool = False) -> Dataset:
    """ImageNet's `train` folder or the one above it, any folder of images (flat or nested), or "synthetic" drawn ones.

    An unreadable image is a ValueError when it is asked for; with `skip_broken` all are read once, now, and such ones
    left out.
    """
    if data_path == SYNTHETIC:
        return SyntheticObjects(_NUM_SYNTHETIC, "train", transform=transform)
    images = ImageNetDataset(data_path, "train", transform, skip_broken=skip_broken, labelled=False)
    if images.skipped:
        get_logger("dino").info(f"Left out: {dict(images.skipped)}; {len(images)} images are there")
    return images
