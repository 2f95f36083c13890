"""Synthetic images in COCO's layout, written when a debug config first asks for them."""

import os
import shutil
import tempfile
from pathlib import Path

from ov_data import OvImageSet

from last_vit.data.synthetic import SyntheticObjects, write_coco


def synthetic_ov_set(
    folder: str | Path,
    split: str,
    num_images: int,
    size: int,
    num_classes: int,
    num_novel: int,
    masks: bool,
    augment: bool,
) -> OvImageSet:
    """Images with one labelled object each; the last classes are novel.

    Args:
        folder: Where the images are, or go; several processes may ask at once.
        split: "train" or "val".
        num_images: Of the split.
        size: Side of the images in pixels, and of the square that they are brought to.
        num_classes: As in `SyntheticObjects`.
        num_novel: How many of them are novel.
        masks: As in `OvImageSet`.
        augment: As in `OvImageSet`.

    Raises:
        ValueError: As in `SyntheticObjects`.
    """
    samples = SyntheticObjects(num_images, split, size, num_classes)
    final = Path(folder) / f"{split}_{num_images}_{size}px_{num_classes}"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=final.parent)
        write_coco(samples, temporary)
        try:
            os.rename(temporary, final)
        except OSError:  # another process was faster: what it wrote is the same
            shutil.rmtree(temporary)
    json_file, images = final / f"annotations/instances_{split}2017.json", final / f"{split}2017"
    novel = samples.classes[num_classes - num_novel :]
    return OvImageSet(json_file, images, size, split == "train", masks, novel, augment)
