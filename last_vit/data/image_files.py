"""Files of a data set: listing them, pairing images with their annotations, and reading images and masks safely.

Pixels stay in the frame in which the file stores them. An EXIF orientation is deliberately not applied: the boxes of
ImageNet, VOC and COCO are annotated on stored pixels, and the field's loaders (torchvision's, and so the release's)
ignore it too. So an image's frame always is its boxes' frame.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    import simplejpeg
except ImportError:  # Pillow then decodes everything: the same pixels in more time
    simplejpeg = None

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
MASK_SUFFIXES = (".png", ".npy")
_INDEX_MODES = ("P", "L", "1")  # Pillow's modes of one 8-bit or 1-bit index per pixel
_RULE = "names must be unique, or the folders on both sides the same"


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Visible files below a folder, in depth and sorted; links are followed.

    Args:
        folder: Where to look.
        suffixes: Lower-case endings with their dots; the files' may be in any case.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
    return [Path(path) for path in sorted(found)]


def pair_by_name(images: Sequence[PurePath], annotations: Sequence[PurePath], with_ending: bool) -> list[int | None]:
    """Find each image's annotation: the one of the same last name.

    Where several share it, folders decide: one of the two paths must be the end of the other ("val2017/7.jpg" and
    "7.jpg", or equal paths in two trees).

    Args:
        images: Paths relative to the images' folder.
        annotations: Paths relative to theirs, or names that the annotations give for images.
        with_ending: Whether the names' endings are compared, too.

    Returns:
        Per image the index into `annotations`, or None.

    Raises:
        ValueError: An image that several annotations fit, or an annotation that fits several images.

    Example:
        >>> pair_by_name([PurePath("cat/1.jpg"), PurePath("dog/1.jpg")], [PurePath("dog/1.xml")], with_ending=False)
        [None, 0]
    """
    image_names, annotation_names = (
        list(paths) if with_ending else [path.with_suffix("") for path in paths] for paths in (images, annotations)
    )
    indices = defaultdict(list)
    for index, name in enumerate(annotation_names):
        indices[name.name].append(index)
    sharing = Counter(name.name for name in image_names)
    pairs: list[int | None] = []
    image_of: dict[int, PurePath] = {}
    for image, name in zip(images, image_names, strict=True):
        fitting = indices.get(name.name, [])
        if len(fitting) > 1 or sharing[name.name] > 1:
            fitting = [index for index in fitting if _is_end_of_other(name, annotation_names[index])]
        if len(fitting) > 1:
            raise ValueError(
                f"image {image} fits annotations {annotations[fitting[0]]} and {annotations[fitting[1]]}: {_RULE}"
            )
        pairs.append(fitting[0] if fitting else None)
        if fitting and image_of.setdefault(fitting[0], image) is not image:
            raise ValueError(
                f"annotation {annotations[fitting[0]]} fits images {image_of[fitting[0]]} and {image}: {_RULE}"
            )
    return pairs


def _is_end_of_other(path: PurePath, other: PurePath) -> bool:
    length = min(len(path.parts), len(other.parts))
    return path.parts[-length:] == other.parts[-length:]


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
    return as_tensor(load_rgb(path)) if pixels is None else torch.from_numpy(pixels).permute(2, 0, 1)


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


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask by its ending, one of `MASK_SUFFIXES`.

    Args:
        path: A one-channel PNG of 1 or 8 bits, or an .npy with [H, W] or [1, H, W].

    Returns:
        [H, W]: bool for a 1-bit PNG and a boolean array, uint8 for another PNG, an array's own integers else.

    Raises:
        OSError: The file cannot be opened or read: FileNotFoundError and the like.
        ValueError: Another ending, corrupt content, colours in place of indices, or an array that is no mask; the
            message names the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MASK_SUFFIXES:
        raise ValueError(f"mask {path} must end in {' or '.join(MASK_SUFFIXES)}")
    try:
        return _load_png(path) if suffix == ".png" else _load_array(path)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's own error says nothing about the content
        raise ValueError(f"mask {path} cannot be read: {error}") from error


def _load_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in _INDEX_MODES:
            raise ValueError(
                f"its mode is {image.mode} ({len(image.getbands())} channels), expected one channel of indices: a "
                "palette (P), 8-bit grey (L) or 1-bit PNG. Where colours stand for objects, convert them to indices"
            )
        return np.array(image)


def _load_array(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    if values.ndim == 3 and len(values) == 1:  # SAM's leading axis of one mask
        values = values[0]
    is_whole = values.dtype == bool or np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or not is_whole:
        raise ValueError(f"it is {values.dtype} {list(values.shape)}, expected booleans or integers [H, W]")
    return values


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


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image's pixels: uint8 [3, height, width], the channels innermost in memory."""
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
