"""What is object on an image, from any of the four places where that is written down.

COCO's instances as boxes or as masks, a folder of XML boxes (VOC, ImageNet), a folder of one mask per image. Each
source has `names` to pair images with, which have the images' endings if `names_are_images`, and
`skipped`, objects left out by reason; `read(index)` reads one annotation, and raises a ValueError that names a broken
one. None opens an image.

Letters: M objects of one image.
"""

from collections import Counter
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from last_vit.data.coco import CocoInstances
from last_vit.data.image_files import MASK_SUFFIXES, list_files, load_mask
from last_vit.data.voc import is_voc_folder, read_voc_xml, voc_boxes

BACKGROUND, OBJECT, UNKNOWN = 0, 1, 255


class ImageObjects(NamedTuple):
    """What is annotated on one image, in the annotation's frame."""

    image_hw: tuple[int, int]  # of the frame, in pixels
    boxes_xyxy: Tensor | None  # float32 [M, 4], x2 and y2 exclusive; None where objects are not told apart
    is_crowd: Tensor | None  # bool [M], regions that hold objects, but not where
    mask: Tensor | None  # uint8 [H, W] of BACKGROUND, OBJECT, UNKNOWN; None where only boxes are known


class CocoObjects:
    """COCO's instances_*.json, with its segmentations or with its boxes alone."""

    names_are_images = True

    def __init__(self, path: Path, with_masks: bool) -> None:
        self._coco = CocoInstances(path)
        self._with_masks = with_masks
        self.names = [PurePath(name) for name in self._coco.file_names]
        self.skipped = self._coco.skipped

    def read(self, index: int) -> ImageObjects:
        """One image's objects."""
        objects, mask = self._coco.objects(index), None
        if self._with_masks:
            mask = self._coco.union_mask(index, crowd=True).to(torch.uint8) * UNKNOWN
            mask[self._coco.union_mask(index)] = OBJECT
        return ImageObjects(tuple(self._coco.image_hw[index].tolist()), objects.boxes_xyxy, objects.is_crowd, mask)


class AnnotationFolder:
    """One annotation file per image, in depth below a folder."""

    names_are_images = False

    def __init__(self, folder: Path, suffixes: tuple[str, ...], expected: str) -> None:
        self._paths = list_files(folder, suffixes)
        if not self._paths:
            raise FileNotFoundError(
                f"no {' or '.join(suffixes)} file in {folder}, searched in depth: expected COCO's instances_*.json, or "
                f"a folder with {expected} per image"
            )
        self.names = [path.relative_to(folder) for path in self._paths]
        self.skipped: Counter[str] = Counter()


class XmlBoxes(AnnotationFolder):
    """Boxes as VOC and ImageNet write them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (".xml",), "an XML file")
        self._is_voc = {parent: is_voc_folder(parent.parent) for parent in {path.parent for path in self._paths}}

    def read(self, index: int) -> ImageObjects:
        """One image's boxes."""
        path = self._paths[index]
        annotation = read_voc_xml(path)
        if self._is_voc[path.parent]:
            boxes = voc_boxes(annotation)
        else:  # ImageNet's corners are taken as they stand, as ImageNetDataset does
            boxes = torch.tensor([each[1:] for each in annotation.objects], dtype=torch.float32).reshape(-1, 4)
        is_crowd = torch.zeros(len(boxes), dtype=torch.bool)
        return ImageObjects((annotation.height, annotation.width), boxes, is_crowd, None)


class MaskFiles(AnnotationFolder):
    """One mask per image."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MASK_SUFFIXES, "a mask")

    def read(self, index: int) -> ImageObjects:
        """One image's mask."""
        path = self._paths[index]
        values = load_mask(path)
        is_unknown = np.zeros(values.shape, dtype=bool) if values.dtype == bool else values == UNKNOWN
        is_object = ~is_unknown & (values != BACKGROUND)
        if values.min() < 0:
            raise ValueError(f"mask {path} holds {values.min()}: values are 0 (background), 255 (unknown) or positive")
        if is_unknown.any() and not is_object.any():
            raise ValueError(
                f"mask {path} holds no object, but 255, which means unknown. Where 255 was meant as object, write 1 in "
                "its place (or booleans: a 1-bit PNG, a bool .npy)"
            )
        mask = np.where(is_unknown, UNKNOWN, is_object).astype(np.uint8)
        return ImageObjects(mask.shape, None, None, torch.from_numpy(mask))


def open_boxes(path: str | Path) -> CocoObjects | XmlBoxes:
    """COCO's instances_*.json as boxes, or a folder of XML files; a missing or foreign file is an error."""
    path = Path(path).expanduser()
    return XmlBoxes(path) if path.is_dir() else CocoObjects(path, with_masks=False)


def open_masks(path: str | Path) -> CocoObjects | MaskFiles:
    """COCO's instances_*.json as masks, or a folder with a .png or .npy per image, likewise."""
    path = Path(path).expanduser()
    return MaskFiles(path) if path.is_dir() else CocoObjects(path, with_masks=True)
