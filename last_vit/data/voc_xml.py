"""Reader of the VOC-style XML annotations that ImageNet and PASCAL VOC use, safe against hostile files.

Reads size, objects' names and boxes, and VOC's two flags. Numbers are taken as they stand: whether a data set counts
pixels from 0 or from 1, and whether its last corner is the last pixel or one past it, is its loader's business.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException


class ObjectBox(NamedTuple):
    """One annotated object; the box in pixels of the annotation's frame, clipped to it."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class ImageAnnotation(NamedTuple):
    """An image's annotation: its frame in pixels, and its objects in the file's order (possibly none).

    The flags, one per object, are VOC's: hard to recognise, and reaching beyond its box. False where not given.
    """

    width: int
    height: int
    objects: tuple[ObjectBox, ...]
    is_difficult: tuple[bool, ...]
    is_truncated: tuple[bool, ...]


def read_voc_xml(path: str | Path) -> ImageAnnotation:
    """Read one annotation file; boxes that reach over the image's border are clipped to it.

    Args:
        path: XML file with `<size>` and any number of `<object>`.

    Returns:
        The frame and its objects; an XML without objects is a valid annotation of nothing.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not XML, XML with entity definitions (an attack, never part of these data sets), no positive size,
            an object without a name or box, or a box with nothing inside the image. The message names the file.
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
        elements = root.findall("object")
        objects = tuple(_read_object(element, width, height) for element in elements)
    except ValueError as error:
        raise ValueError(f"annotation {path}: {error}") from error
    flags = (tuple(_is_set(element, tag) for element in elements) for tag in ("difficult", "truncated"))
    return ImageAnnotation(width, height, objects, *flags)


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


def _is_set(element: Element, tag: str) -> bool:
    return (element.findtext(tag) or "").strip() == "1"


def _number(element: Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{tag}> is missing")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"<{tag}> is not a number: {text!r}") from error
