"""From an image file to the tensor that a model reads: safe decoding, the evaluation and the training transform.

Pixels stay in the frame in which the file stores them. An EXIF orientation is deliberately not applied: the boxes of
ImageNet, VOC and COCO are annotated on stored pixels, and the field's loaders (torchvision's, and so the release's)
ignore it too. So an image's frame always is its boxes' frame.

The evaluation transform is torchvision's own on PIL images (resizing with antialiasing), which published accuracies
were measured with. The training transform draws and does the same on uint8 tensors, decoded by simplejpeg (which is
libjpeg-turbo): the same decoded pixels, the same crops, and resized pixels that differ from Pillow's by less than a
tenth of one of 255 levels on average, in less time (`tools/bench/bench_data.py` measures both).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

try:
    import simplejpeg
except ImportError:  # Pillow then decodes everything: the same pixels in more time
    simplejpeg = None

INTERPOLATIONS = ("bilinear", "bicubic")
_CROP_RATIO = (3 / 4, 4 / 3)  # width by height of a training crop, as in torchvision


def load_rgb(path: str | Path) -> Image.Image:
    """Decode an image file of any colour mode (grey, CMYK, palette, alpha, ...) to RGB.

    Transparency is dropped, not blended, as torchvision's loader does.

    Args:
        path: An image file in any format that Pillow reads.

    Returns:
        RGB image in the stored pixel frame; an EXIF orientation is not applied (see the module's docstring).

    Raises:
        OSError: The file cannot be opened or read: FileNotFoundError and the like.
        ValueError: The file is truncated, corrupt or not an image; the message names it.
    """
    with _naming(path), Image.open(path) as image:
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")  # the same colours; straight to RGB warns
        return image.convert("RGB")


def load_pixels(path: str | Path) -> Tensor:
    """`load_rgb` as a tensor, in less time for a JPEG in colour or grey.

    Pillow has the last word: it decodes every file that simplejpeg does not take without complaint (other formats,
    CMYK, broken or unusual JPEGs, images past Pillow's limit on size), or refuses it as it always did.

    Returns:
        uint8 [3, height, width] with the channels innermost in memory; equal to `load_rgb`'s pixels.

    Raises:
        OSError, ValueError: As `load_rgb`.
    """
    pixels = _decode_jpeg(Path(path).read_bytes())
    return _as_tensor(load_rgb(path)) if pixels is None else torch.from_numpy(pixels).permute(2, 0, 1)


def verify_image(path: str | Path) -> tuple[int, int]:
    """Read all of an image file's data, as `load_rgb` would, and give its size.

    A JPEG is decoded at an eighth of its size: that reads every byte, so it finds truncation, and costs less.

    Returns:
        (height, width) in stored pixels.

    Raises:
        OSError, ValueError: As `load_rgb`.
    """
    with _naming(path), Image.open(path) as image:
        width, height = image.size
        image.draft("RGB", (1, 1))
        image.load()
    return height, width


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
        pixels = image if isinstance(image, Tensor) else _as_tensor(image)
        top, left, height, width = transforms.RandomResizedCrop.get_params(pixels, self._scale, _CROP_RATIO)
        crop = pixels[None, :, top : top + height, left : left + width]
        view = F.interpolate(crop, (self._size, self._size), mode=self._mode, antialias=True)[0]
        if torch.rand(1) < 0.5:
            view = view.flip(-1)
        view = view.to(torch.float32, memory_format=torch.contiguous_format)
        return view.mul_(self._factor).add_(self._offset)


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """RGB uint8 [height, width, 3]; None for what Pillow should judge."""
    if simplejpeg is None:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        limit = Image.MAX_IMAGE_PIXELS
        if colors in ("CMYK", "YCCK") or (limit is not None and height * width > limit):
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn what Pillow raises for broken content into a ValueError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's own error says nothing about the content
        raise ValueError(
            f"image {path} cannot be read ({error}); restore this file from the data set's archive, "
            "or leave out broken images with skip_broken=True"
        ) from error


def _check_size(name: str, size: int) -> int:
    if size < 1:
        raise ValueError(f"{name} must be a positive number of pixels, got {size}")
    return size


def _interpolation_mode(name: str) -> InterpolationMode:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r}")
    return InterpolationMode(name)
