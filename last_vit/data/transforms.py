"""From an image file to the tensor that a model reads: safe decoding, the evaluation and the training transform.

Pixels stay in the frame in which the file stores them. An EXIF orientation is deliberately not applied: the boxes of
ImageNet, VOC and COCO are annotated on stored pixels, and the field's loaders (torchvision's, and so the release's)
ignore it too. So an image's frame always is its boxes' frame.

The evaluation transform is torchvision's own on PIL images (resizing with antialiasing), which published accuracies
were measured with. The training transform draws and does the same on uint8 tensors, decoded by simplejpeg (which is
libjpeg-turbo): the same decoded pixels, the same crops, and resized pixels that differ from Pillow's by less than a
tenth of one of 255 levels on average, in less time (`tools/bench/bench_data.py` measures both).
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.data.image_files import as_tensor, load_pixels
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

INTERPOLATIONS = ("bilinear", "bicubic")
_CROP_RATIO = (3 / 4, 4 / 3)  # width by height of a training crop, as in torchvision


class EvalTransform:
    """Resize the shorter side, crop the centre, normalise: the field's evaluation transform.

    Args:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the centre crop, in pixels; an image smaller than the crop is padded with black.
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].
        interpolation: One of `INTERPOLATIONS`.

    Raises:
        ValueError: Unknown interpolation, or a size that is not positive.
    """

    def __init__(
        self,
        resize: int = 256,
        crop: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ) -> None:
        self.resize = _check_size("resize", resize)
        self.crop = _check_size("crop", crop)
        self.mean, self.std = tuple(mean), tuple(std)
        self.interpolation = interpolation
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

    def __repr__(self) -> str:
        return (
            f"EvalTransform(resize={self.resize}, crop={self.crop}, mean={self.mean}, std={self.std}, "
            f"interpolation={self.interpolation!r})"
        )


def train_transform(
    size: int = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    scale: Sequence[float] = (0.08, 1.0),
    interpolation: str = "bilinear",
) -> Callable[[Image.Image], Tensor]:
    """Random resized crop, horizontal flip, normalise: the release's training transform.

    Args:
        size: Side of the result, in pixels.
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].
        scale: Smallest and largest share of the image's area that a crop may take. The default is the release's;
            small images (Tiny-ImageNet's 64 pixels) are better served by a larger minimum, such as 0.35.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        Callable from an RGB image, PIL or uint8 [3, height, width], to float32 [3, size, size]. All its chance is drawn
        from torch's CPU generator, as torchvision's RandomResizedCrop and RandomHorizontalFlip draw it. Its `load`
        reads an image file; data sets use it in place of `load_rgb`.

    Raises:
        ValueError: Unknown interpolation, a size that is not positive, or a scale that is not 0 < min <= max <= 1.
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale must be (min, max) with 0 < min <= max <= 1 (shares of the area), got {tuple(scale)}")
    return _TrainTransform(
        _check_size("size", size), tuple(mean), tuple(std), (low, high), _interpolation_mode(interpolation)
    )


class _TrainTransform:
    """What `train_transform` returns. It resizes uint8 pixels, for which torch's kernel takes half of Pillow's time."""

    load = staticmethod(load_pixels)

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: tuple[float, float],
        interpolation: InterpolationMode,
    ) -> None:
        self._size, self._scale, self._mode = size, scale, interpolation.value
        # (x / 255 - mean) / std in one multiplication and one addition
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
        self._factor, self._offset = (1 / (255 * std)).float(), (-mean / std).float()

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        pixels = image if isinstance(image, Tensor) else as_tensor(image)
        top, left, height, width = transforms.RandomResizedCrop.get_params(pixels, self._scale, _CROP_RATIO)
        crop = pixels[None, :, top : top + height, left : left + width]
        view = F.interpolate(crop, (self._size, self._size), mode=self._mode, antialias=True)[0]
        if torch.rand(1) < 0.5:
            view = view.flip(-1)
        view = view.to(torch.float32, memory_format=torch.contiguous_format)
        return view.mul_(self._factor).add_(self._offset)


def _check_size(name: str, size: int) -> int:
    if size < 1:
        raise ValueError(f"{name} must be a positive number of pixels, got {size}")
    return size


def _interpolation_mode(name: str) -> InterpolationMode:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r}")
    return InterpolationMode(name)
