"""Drawn images of the size of photographs, in the layouts that the evaluations read. Imported by benches only."""

import shutil
from functools import lru_cache
from pathlib import Path

from last_vit.data.synthetic import SyntheticObjects, SyntheticSample, write_coco, write_imagenet, write_voc

SIDE, CLASSES = 432, 8  # 432 x 432 are as many pixels as 500 x 375
_DRAWN = 5 * CLASSES
FOLDERS = {"imagenet": "imagenet", "voc": "VOC2012", "ade20k": "ADEChallengeData2016", "coco": "coco"}


class RepeatedObjects(SyntheticObjects):
    """The same few images again and again, with the labels of their places: drawing takes longer than evaluating.

    Args:
        num_images: Length; files are as many.
        side: In pixels.
    """

    def __init__(self, num_images: int, side: int = SIDE) -> None:
        super().__init__(num_images, "val", side, CLASSES)

    def render(self, index: int) -> SyntheticSample:
        """See `SyntheticObjects`."""
        return _draw(self.image_size, index % _DRAWN)  # whole turns through the classes, so that labels stay right


@lru_cache(maxsize=2 * _DRAWN)
def _draw(side: int, index: int) -> SyntheticSample:
    return SyntheticObjects(_DRAWN, "val", side, CLASSES).render(index)


def write_set(root: Path, layout: str, num_images: int, side: int = SIDE) -> None:
    """Write a validation set as `FOLDERS` has it below a root.

    Args:
        root: Made when missing.
        layout: Key of `FOLDERS`.
        num_images: Files; at least one per class is written.
        side: Of the images, in pixels.
    """
    samples, folder = RepeatedObjects(max(num_images, CLASSES), side), root / FOLDERS[layout]
    if layout == "imagenet":
        write_imagenet(samples, folder)
    elif layout == "coco":
        write_coco(samples, folder)
    else:
        write_voc(samples, root)
    if layout == "ade20k":
        # 0, VOC's background, is ADE20K's mark for pixels that do not count; the object has one of its 150 classes
        for ours, theirs in (("JPEGImages", "images"), ("SegmentationClass", "annotations")):
            shutil.copytree(root / FOLDERS["voc"] / ours, folder / theirs / "validation")
