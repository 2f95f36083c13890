"""DINO's multi-crop augmentation: two large and several small views of an image, each with its own distortions."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_BLUR_RADIUS = (0.1, 2.0)  # pixels
_SOLARIZE_THRESHOLD = 128


class MultiCropAugmentation:
    """PIL RGB image -> list of views, float32 [3, side, side], ImageNet-normalised, the two global ones first.

    Every view is a random resized crop (bicubic), flipped with probability 0.5, colour-jittered with 0.8 and turned
    grey with 0.2; then the first global view is blurred, the second with probability 0.1 (and solarised with 0.2), a
    local one with 0.5. All chance is drawn from torch's CPU generator.

    Args:
        global_crops_scale: Smallest and largest share of the image's area that a global crop takes.
        local_crops_scale: The same for local crops.
        local_crops_number: How many local views; 0 for none.
        global_crop_size: Side in pixels.
        local_crop_size: Side in pixels.
    """

    def __init__(
        self,
        global_crops_scale: Sequence[float],
        local_crops_scale: Sequence[float],
        local_crops_number: int,
        global_crop_size: int = 224,
        local_crop_size: int = 96,
    ) -> None:
        first = _view(global_crop_size, global_crops_scale, blur=1.0)
        second = _view(global_crop_size, global_crops_scale, blur=0.1, solarize=0.2)
        local = _view(local_crop_size, local_crops_scale, blur=0.5)
        self.views = (first, second, *[local] * local_crops_number)

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """The views of one image."""
        return [view(image) for view in self.views]


class RandomBlur:
    """Gaussian blur with a radius drawn from [0.1, 2] pixels.

    Args:
        probability: In [0, 1].
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        """A blurred copy, or the image itself."""
        if torch.rand(()).item() >= self.probability:
            return image
        low, high = _BLUR_RADIUS
        return image.filter(ImageFilter.GaussianBlur(low + (high - low) * torch.rand(()).item()))


def _view(side: int, scale: Sequence[float], blur: float, solarize: float = 0.0) -> Callable[[Image.Image], Tensor]:
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            RandomBlur(blur),
            *([transforms.RandomSolarize(_SOLARIZE_THRESHOLD, p=solarize)] if solarize else []),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
