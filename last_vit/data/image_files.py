"""Files of a data set: listing them, pairing images with their annotations, and reading images and masks safely.

Pixels of a data set stay in the frame in which the file stores them. An EXIF orientation is deliberately not applied:
the boxes of ImageNet, VOC and COCO are annotated on stored pixels, and the field's loaders (torchvision's, and so the
release's) ignore it too. So an image's frame always is its boxes' frame. Photos, which have no boxes, are put upright.

Every reader raises OSError (FileNotFoundError and the like) where the file cannot be opened, and a ValueError that
names the file where its content is truncated, corrupt or of another kind. Needs no torch.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:  # Pillow then decodes everything: the same pixels in more time
    simplejpeg = None

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
MASK_SUFFIXES = (".png", ".npy")
_BROKEN_IMAGE = "; restore it from the data set's archive, or leave such images out where there is a skip_broken"
_RULE = "names must be unique, or the folders on both sides the same"


def list_files(folder: Path, suffixes: tuple[str, ...], others: Counter[str] | None = None) -> list[Path]:
    """Visible files below a folder, in depth and sorted; links are followed. `suffixes` are lower-case, with dots.

    `others` counts the other visible files, as `count_other` words them.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes):
                found += [] if name.startswith(".") else [os.path.join(parent, name)]
            elif others is not None:
                count_other(name, others)
    return [Path(path) for path in sorted(found)]


def count_other(name: str, others: Counter[str]) -> None:
    """Count a visible file that is not read by its ending: `{"file of another kind (.heic)": 1}`."""
    if not name.startswith("."):
        others[f"file of another kind ({PurePath(name).suffix.lower() or 'no ending'})"] += 1


def pair_by_name(images: Sequence[PurePath], annotations: Sequence[PurePath], with_ending: bool) -> list[int | None]:
    """Find each image's annotation: the one of the same last name.

    Where several share it, folders decide: one of the two paths must be the end of the other ("val2017/7.jpg" and
    "7.jpg", or equal paths in two trees). Paths are relative to the folder of the images, and of the annotations (or
    names that these give for images); `with_ending` compares the names' endings, too. Per image the index into
    `annotations`, or None; ValueError for an image that several annotations fit, or the other way around.

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
            several = f"{annotations[fitting[0]]} and {annotations[fitting[1]]}"
            raise ValueError(f"image {image} fits annotations {several}: {_RULE}")
        pairs.append(fitting[0] if fitting else None)
        if fitting and image_of.setdefault(fitting[0], image) is not image:
            several = f"{image_of[fitting[0]]} and {image}"
            raise ValueError(f"annotation {annotations[fitting[0]]} fits images {several}: {_RULE}")
    return pairs


def load_rgb(path: str | Path) -> Image.Image:
    """Decode an image file of any format and colour mode (grey, CMYK, palette, alpha, ...) to RGB.

    Transparency is dropped, not blended, as torchvision's loader does. 16-bit grey is scaled from 65535 to 255.
    """
    with _naming("image", path, _BROKEN_IMAGE), Image.open(path) as image:
        return to_rgb(image)


def load_photo(path: str | Path) -> Image.Image:
    """`load_rgb` of a photo that belongs to no data set, turned upright as its EXIF orientation says."""
    with _naming("photo", path, "; expected a JPEG, a PNG or another image"), Image.open(path) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def load_photos(paths: Sequence[Path]) -> dict[str, Image.Image]:
    """Photos by their names without endings, which pictures of them are called after, so they must differ."""
    photos: dict[str, Image.Image] = {}
    for path in paths:
        if path.stem in photos:
            raise ValueError(f"two photos are called {path.stem!r}; their pictures would be one file: rename one")
        photos[path.stem] = load_photo(path)
    return photos


def to_rgb(image: Image.Image) -> Image.Image:
    """`load_rgb` of an opened image; ValueError for grey whose scale is unknown."""
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the same colours; straight to RGB warns
    if image.mode.startswith("I"):  # Pillow itself would clip 16-bit grey at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.size and not 0 <= grey.min() <= grey.max() <= 65535:
            raise ValueError(f"its grey reaches from {grey.min()} to {grey.max()}, expected 16 bits")
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def load_pixels(path: str | Path) -> np.ndarray:
    """The pixels of `load_rgb`, uint8 [height, width, 3], in less time for a JPEG in colour or grey.

    Pillow has the last word: it decodes every file that simplejpeg does not take without complaint (other formats,
    CMYK, broken or unusual JPEGs, images past Pillow's limit on size), or refuses it as it always did.
    """
    pixels = _decode_jpeg(Path(path).read_bytes())
    return np.array(load_rgb(path)) if pixels is None else pixels


def verify_image(path: str | Path) -> tuple[int, int]:
    """Read all of an image file's data, as `load_rgb` would, and give its (height, width) in stored pixels.

    A JPEG is decoded at an eighth of its size: that reads every byte, so it finds truncation, and costs less.
    """
    with _naming("image", path, _BROKEN_IMAGE), Image.open(path) as image:
        width, height = image.size
        image.draft("RGB", (1, 1))
        image.load()
    return height, width


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask: one whole number or truth value per pixel, whose meaning is the caller's business.

    From a one-channel PNG of 1 or 8 bits as VOC, ADE20K and others write them (a palette or grey, whose values are
    indices), or an .npy with [H, W] or [1, H, W], as SAM's masks are kept: [H, W], bool for a 1-bit PNG and a boolean
    array, uint8 for another PNG, an array's own integers else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MASK_SUFFIXES:
        raise ValueError(f"mask {path} must end in {' or '.join(MASK_SUFFIXES)}")
    with _naming("mask", path):
        return _load_png(path) if suffix == ".png" else _load_array(path)


def _is_end_of_other(path: PurePath, other: PurePath) -> bool:
    length = min(len(path.parts), len(other.parts))
    return path.parts[-length:] == other.parts[-length:]


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


def _load_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in ("P", "L", "1"):
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


@contextmanager
def _naming(kind: str, path: str | Path, way_out: str = "") -> Iterator[None]:
    """Turn what Pillow and numpy raise for broken content into a ValueError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's own error says nothing about the content
        raise ValueError(f"{kind} {path} cannot be read: {error}{way_out}") from error
