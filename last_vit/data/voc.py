"""PASCAL VOC: the XML annotations that ImageNet uses, too, the devkit's image lists, boxes, masks and colours.

`read_voc_xml` takes numbers as they stand. VOC counts pixels from 1, and its last corner is an object's last pixel, so
`voc_boxes` gives boxes in this package's frame, counted from 0 with x2 and y2 exclusive: xmin and ymin less 1, xmax and
ymax as they are.

Letters: M objects of one image.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import torch
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from torch import Tensor

from last_vit.data.image_files import load_mask

LISTINGS = ("Main", "Segmentation", "SegmentationContext")

_EXPECTED = (
    "expected VOC2007 or VOC2012, a folder with JPEGImages, Annotations and ImageSets, or a folder VOCdevkit above "
    "one of them; from http://host.robots.ox.ac.uk/pascal/VOC"
)


class ObjectBox(NamedTuple):
    """One annotated object; the box in pixels of the annotation's frame, clipped to it."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class ImageAnnotation(NamedTuple):
    """An image's frame in pixels and its objects in the file's order (possibly none)."""

    width: int
    height: int
    objects: tuple[ObjectBox, ...]


class VocSplit:
    """One image list of a VOC folder; index i in [0, len) is the image's place in the list.

    `root` is `VOCdevkit/VOC2007` or `VOCdevkit/VOC2012`, or a folder above with just one of them, `split` the name of a
    list such as "train", "val" or "trainval", and `listing` where that stands: "Main" (boxes), "Segmentation" (the
    images that have masks) or "SegmentationContext" (those of PASCAL-Context, from clip/convert_context59.py).
    `folder` is the VOC<year> folder, `stems` are the images' names without ending.

    FileNotFoundError for a wrong root, no such list, or an image of it that is not there; ValueError for an unknown
    listing, several years below `root`, and a list that is empty, names an image twice or is not one of images.
    """

    def __init__(self, root: str | Path, split: str, listing: str = "Main") -> None:
        if listing not in LISTINGS:
            raise ValueError(f"listing must be one of {', '.join(LISTINGS)}, got {listing!r}")
        self.folder = find_voc_folder(root)
        path = self.folder / "ImageSets" / listing / f"{split}.txt"
        self.stems = _read_list(path)
        images = self.folder / "JPEGImages"
        missing = sorted({f"{stem}.jpg" for stem in self.stems} - {image.name for image in images.iterdir()})
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self.stems)} images in {path} are not there, such as "
                f"{images / missing[0]}; {_EXPECTED}"
            )

    def __len__(self) -> int:
        return len(self.stems)

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self.folder / "JPEGImages" / f"{self.stems[index]}.jpg"

    def class_mask(self, index: int) -> Tensor:
        """Class of each pixel: uint8 [H, W], 0 background, 1 to 20 classes in alphabetical order, 255 unknown.

        Main's images have a mask only if Segmentation lists them; raises as `load_mask`.
        """
        return self._mask("SegmentationClass", index)

    def object_mask(self, index: int) -> Tensor:
        """Number of the object of each pixel, as `class_mask`: uint8 [H, W], 0 background, 255 unknown."""
        return self._mask("SegmentationObject", index)

    def _mask(self, kind: str, index: int) -> Tensor:
        return torch.from_numpy(load_mask(self.folder / kind / f"{self.stems[index]}.png"))


def find_voc_folder(root: str | Path) -> Path:
    """The VOC<year> folder that a root means; FileNotFoundError where it means none, ValueError where several."""
    root = Path(root).expanduser()
    candidates = [root, *sorted(root.glob("VOC2*")), *sorted(root.glob("VOCdevkit/VOC2*"))]
    found = [folder for folder in candidates if is_voc_folder(folder)]
    if not found:
        state = "holds no VOC images" if root.is_dir() else "does not exist"
        raise FileNotFoundError(f"VOC root {root} {state}: {_EXPECTED}")
    if len(found) > 1:
        raise ValueError(f"VOC root {root} holds {', '.join(folder.name for folder in found)}: give one of them")
    return found[0]


def is_voc_folder(folder: Path) -> bool:
    """Whether a folder is a VOC<year> folder: it holds JPEGImages."""
    return (folder / "JPEGImages").is_dir()


def stored_boxes(annotation: ImageAnnotation) -> Tensor:
    """The boxes of an annotation as they stand, which is right for ImageNet's: float32 [M, 4]."""
    return torch.tensor([each[1:] for each in annotation.objects], dtype=torch.float32).reshape(-1, 4)


def voc_boxes(annotation: ImageAnnotation) -> Tensor:
    """The boxes of a VOC annotation in this package's frame: float32 [M, 4]."""
    boxes = stored_boxes(annotation)
    boxes[:, :2] = (boxes[:, :2] - 1).clamp(min=0)
    return boxes


def voc_colors() -> np.ndarray:
    """VOC's colour of each index, uint8 [256, 3]: the index's bits 0, 3, 6 are red from the top, 1, 4, 7 green."""
    index = np.arange(256)
    channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def read_voc_xml(path: str | Path) -> ImageAnnotation:
    """Read one XML annotation, safe against hostile files; boxes that reach over the image's border are clipped to it.

    A ValueError that names the file for what is not XML, entity definitions (an attack, never part of these data sets),
    no positive size, an object without a name or box, and a box with nothing inside the image.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except DefusedXmlException as error:
        raise ValueError(
            f"annotation {path} defines XML entities, which no data set needs: refused ({error})"
        ) from error
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"annotation {path} is not readable XML: {error}") from error
    try:
        width, height = (int(_number(root, f"size/{side}")) for side in ("width", "height"))
        if width < 1 or height < 1:
            raise ValueError(f"image size {width} x {height} is not positive")
        objects = tuple(_read_object(element, width, height) for element in root.findall("object"))
    except ValueError as error:
        raise ValueError(f"annotation {path}: {error}") from error
    return ImageAnnotation(width, height, objects)


def _read_object(element: Element, width: int, height: int) -> ObjectBox:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    raw = [_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    xmin, ymin = max(raw[0], 0.0), max(raw[1], 0.0)
    xmax, ymax = min(raw[2], float(width)), min(raw[3], float(height))
    # equal corners pass: ImageNet's and VOC's corners are the first and last pixel, so that is one pixel's width
    if not (xmin <= xmax and xmin < width and ymin <= ymax and ymin < height):
        raise ValueError(f"box {raw} of object {name!r} has nothing inside the {width} x {height} image")
    return ObjectBox(name, xmin, ymin, xmax, ymax)


def _number(element: Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{tag}> is missing")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"<{tag}> is not a number: {text!r}") from error


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob("*.txt") if "_" not in each.stem)
        raise FileNotFoundError(f"no image list {path}; lists there: {', '.join(there) or 'none'}; {_EXPECTED}")
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"image list {path} is empty")
    wide = next((line for line in lines if len(line) > 1), None)
    if wide is not None:
        raise ValueError(
            f"{path} holds {' '.join(wide)!r}, so it is not a list of images but of one class's presence; take a split "
            "such as val"
        )
    stems = [line[0] for line in lines]
    stem, count = Counter(stems).most_common(1)[0]
    if count > 1:
        raise ValueError(f"image list {path} names {stem} {count} times")
    return stems
