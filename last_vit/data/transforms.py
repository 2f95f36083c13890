"""From an image file to the tensor that a model reads: safe decoding, the evaluation and the training transform.

Pixels stay in the frame in which the file stores them. An EXIF orientation is deliberately not applied: the boxes of
ImageNet, VOC and COCO are annotated on stored pixels, and the field's loaders (torchvision's, and so the release's)
ignore it too. So an image's frame always is its boxes' frame.

The transforms are torchvision's own on PIL images (resizing with antialiasing), which published accuracies were
measured with; its v1 classes, because they are up to 20% faster here than v2's with equal results.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

INTERPOLATIONS = ("bilinear", "bicubic")


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
        Callable from a PIL RGB image to float32 [3, size, size]. All its chance is drawn from torch's CPU generator.

    Raises:
        ValueError: Unknown interpolation, a size that is not positive, or a scale that is not 0 < min <= max <= 1.
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale must be (min, max) with 0 < min <= max <= 1 (shares of the area), got {tuple(scale)}")
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                _check_size("size", size), scale=(low, high), interpolation=_interpolation_mode(interpolation)
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(tuple(mean), tuple(std)),
        ]
    )


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
