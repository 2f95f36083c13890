"""What is object on an image: from COCO's instances as boxes or as masks, or a folder of XML boxes or of masks.

Letters: M objects of one image.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from last_vit.data.coco import CocoInstances
from last_vit.data.image_files import MASK_SUFFIXES, list_files, load_mask
from last_vit.data.voc import is_voc_folder, read_voc_xml, stored_boxes, voc_boxes

BACKGROUND, OBJECT, UNKNOWN = 0, 1, 255


class ImageObjects(NamedTuple):
    """What is annotated on one image, in the annotation's frame."""

    image_hw: tuple[int, int]  # of the frame, in pixels
    boxes_xyxy: Tensor | None  # float32 [M, 4], x2 and y2 exclusive; None where objects are not told apart
    is_crowd: Tensor | None  # bool [M], regions that hold objects, but not where
    mask: Tensor | None  # uint8 [H, W] of BACKGROUND, OBJECT, UNKNOWN; None where only boxes are known


class Annotations(NamedTuple):
    """What is annotated on many images."""

    names: list[PurePath]  # per annotation, what an image's path is compared with
    names_are_images: bool  # whether they have the images' endings; else the annotation files' own
    skipped: Counter[str]  # objects that were left out, by reason
    read: Callable[[int], ImageObjects]  # one annotation, by index; of a broken one a ValueError that names it


def open_annotations(path: str | Path, with_masks: bool) -> Annotations:
    """COCO's instances_*.json, or a folder of XML files, or with masks one of .png and .npy, one per image.

    A missing or foreign file, and a folder without such files, is an error that says so.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        coco = CocoInstances(path)
        names = [PurePath(name) for name in coco.file_names]
        return Annotations(names, True, coco.skipped, partial(_read_coco, coco, with_masks))
    suffixes, expected, read = (".xml",), "an XML file", _read_xml
    if with_masks:
        suffixes, expected, read = MASK_SUFFIXES, "a mask", _read_mask
    paths = list_files(path, suffixes)
    if not paths:
        raise FileNotFoundError(
            f"no {' or '.join(suffixes)} file in {path}, searched in depth: expected COCO's instances_*.json, or a "
            f"folder with {expected} per image"
        )
    return Annotations([each.relative_to(path) for each in paths], False, Counter(), partial(_read_file, paths, read))


def _read_coco(coco: CocoInstances, with_masks: bool, index: int) -> ImageObjects:
    objects, mask = coco.objects(index), None
    if with_masks:
        mask = coco.union_mask(index, crowd=True).to(torch.uint8) * UNKNOWN
        mask[coco.union_mask(index)] = OBJECT
    return ImageObjects(tuple(coco.image_hw[index].tolist()), objects.boxes_xyxy, objects.is_crowd, mask)


def _read_file(paths: list[Path], read: Callable[[Path], ImageObjects], index: int) -> ImageObjects:
    return read(paths[index])


def _read_xml(path: Path) -> ImageObjects:
    annotation = read_voc_xml(path)
    boxes = voc_boxes(annotation) if is_voc_folder(path.parent.parent) else stored_boxes(annotation)
    is_crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return ImageObjects((annotation.height, annotation.width), boxes, is_crowd, None)


def _read_mask(path: Path) -> ImageObjects:
    values = load_mask(path)
    is_unknown = values == UNKNOWN  # of booleans none is
    is_object = ~is_unknown & (values != BACKGROUND)
    if values.min() < 0:
        raise ValueError(f"mask {path} holds {values.min()}: values are 0 (background), 255 (unknown) or positive")
    if is_unknown.any() and not is_object.any():
        raise ValueError(
            f"mask {path} holds no object, but 255, which is unknown; where object was meant, write 1, or booleans"
        )
    mask = np.where(is_unknown, UNKNOWN, is_object).astype(np.uint8)
    return ImageObjects(mask.shape, None, None, torch.from_numpy(mask))
