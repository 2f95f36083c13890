"""From an image file to a training view, by this project and by what other libraries offer. Imported by bench_data.py.

Every reader draws the same crop and flip from torch's generator (torchvision's RandomResizedCrop and
RandomHorizontalFlip) and returns a float32 tensor [3, size, size], normalised. They differ in who decodes and who
resizes. `release_reader` is the release's own way, against whose views the others' pixels are compared.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import io as torchvision_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F2

from last_vit.data.image_files import load_rgb
from last_vit.data.transforms import train_transform
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Reader = Callable[[Path], Tensor]
_MEAN, _STD = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Alternative:
    """One way to read.

    Attributes:
        name: Letters, digits and "_".
        words: Who decodes, who resizes.
        build: Size of the view in pixels -> reader.
        package: What pip calls what it needs; None for what is always there.
        module: What Python calls it.
        same_pixels: It decodes exactly and resizes with the same filter; what is left is rounding.
    """

    name: str
    words: str
    build: Callable[[int], Reader]
    package: str | None = None
    module: str = "torch"
    same_pixels: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether its module is there."""
        return importlib.util.find_spec(self.module) is not None


def our_reader(size: int) -> Reader:
    """`last_vit.data.transforms.train_transform`, as the training configs use it."""
    transform = train_transform(size)
    return lambda path: transform(transform.load(path))


def our_reader_by_pillow(size: int) -> Reader:
    """The same where simplejpeg is not installed."""
    transform = train_transform(size)
    return lambda path: transform(load_rgb(path))


def _on_pil(size: int) -> Callable[[Image.Image], Tensor]:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def release_reader(size: int) -> Reader:
    """Pillow and torchvision's v1 transforms."""
    transform = _on_pil(size)
    return lambda path: transform(load_rgb(path))


def draft_reader(size: int) -> Reader:
    """Pillow decodes at 1/2, 1/4 or 1/8 where the crop stays at least as large as the view."""

    def read(path: Path) -> Tensor:
        with Image.open(path) as image:
            width, height = image.size
            top, left, rows, columns = _draw_crop(height, width)
            image.draft("RGB", (-(-width * size // columns), -(-height * size // rows)))
            scale = image.width / width
            box = [round(scale * side) for side in (left, top, left + columns, top + rows)]
            view = image.convert("RGB").crop(box).resize((size, size), Image.Resampling.BILINEAR)
        return _finish(np.asarray(view))

    return read


def torchvision_reader(size: int) -> Reader:
    """Torchvision's own decoder (deprecated since its version 0.29) and v2's functions on uint8 tensors."""

    def read(path: Path) -> Tensor:
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        pixels = torchvision_io.decode_jpeg(data, torchvision_io.ImageReadMode.RGB)
        crop = _draw_crop(*pixels.shape[-2:])
        view = F2.resized_crop(pixels, *crop, [size, size], InterpolationMode.BILINEAR, antialias=True)
        if torch.rand(1) < 0.5:
            view = F2.horizontal_flip(view)
        return F2.normalize(F2.to_dtype(view, torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_STD, inplace=True)

    return read


def opencv_reader(size: int) -> Reader:
    """OpenCV on one thread; INTER_AREA, for its linear filter does not smooth before it shrinks."""
    import cv2

    cv2.setNumThreads(1)

    def read(path: Path) -> Tensor:
        pixels = cv2.imdecode(
            np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        top, left, rows, columns = _draw_crop(*pixels.shape[:2])
        crop = pixels[top : top + rows, left : left + columns]
        view = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        return _finish(cv2.cvtColor(view, cv2.COLOR_BGR2RGB))

    return read


def fast_dct_reader(size: int) -> Reader:
    """Ours with libjpeg-turbo's faster, less exact inverse DCT and chroma interpolation."""
    import simplejpeg

    transform = train_transform(size)

    def read(path: Path) -> Tensor:
        pixels = simplejpeg.decode_jpeg(path.read_bytes(), "RGB", fastdct=True, fastupsample=True)
        return transform(torch.from_numpy(pixels).permute(2, 0, 1))

    return read


ALTERNATIVES = (
    Alternative("pillow", "Pillow, torchvision v1 on PIL (the release's)", release_reader),
    Alternative("pillow_draft", "the same, Pillow in draft mode", draft_reader, same_pixels=False),
    Alternative("torchvision", "torchvision.io, v2 on uint8 tensors", torchvision_reader),
    Alternative("opencv", "OpenCV, INTER_AREA", opencv_reader, "opencv-python-headless", "cv2", same_pixels=False),
    Alternative("pillow_tensor", "Pillow decoding, the rest as ours", our_reader_by_pillow),
    Alternative(
        "fast_dct",
        "simplejpeg's inexact DCT, the rest as ours",
        fast_dct_reader,
        "simplejpeg",
        "simplejpeg",
        same_pixels=False,
    ),
)


def mean_difference(reader: Reader, reference: Reader, paths: list[Path]) -> float:
    """Mean absolute difference of two readers' views on the same crops, in levels of 0 to 255."""
    total = 0.0
    for seed, path in enumerate(paths):
        views = []
        for read in (reader, reference):
            torch.manual_seed(seed)
            views.append(read(path))
        levels = 255 * torch.from_numpy(_STD).view(3, 1, 1) * (views[0] - views[1])
        total += levels.abs().mean().item()
    return total / len(paths)


def _draw_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width), as torchvision draws them."""
    return transforms.RandomResizedCrop.get_params(torch.empty(3, height, width, device="meta"), _SCALE, _RATIO)


def _finish(view: np.ndarray) -> Tensor:
    """Flip and normalise uint8 [size, size, 3], in one multiplication and one addition."""
    if torch.rand(1) < 0.5:
        view = view[:, ::-1]
    scaled = view * (1 / (255 * _STD)) - _MEAN / _STD
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
