"""Tiny segmentation sets in official layouts, for the tests of their readers and converters."""

from pathlib import Path

import numpy as np
from PIL import Image

HW = (4, 6)


def save_image(path, hw=HW):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_label(path, values, is_palette=False):
    """Values may be a flat list that fills HW from the start, the rest being its last value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(values, list):
        values = np.array(values + values[-1:] * (HW[0] * HW[1] - len(values)), dtype=np.uint8).reshape(HW)
    image = Image.fromarray(values)
    if is_palette:
        image.putpalette([5 * index % 256 for index in range(768)])
    image.save(path)
    return path


def make_voc(root: Path, labels, year=2012, kind="SegmentationClass", listing="Segmentation", split="val") -> Path:
    """A VOC<year> folder; `labels` is stem -> values."""
    folder = root / f"VOC{year}"
    for stem, values in labels.items():
        save_image(folder / "JPEGImages" / f"{stem}.jpg")
        save_label(folder / kind / f"{stem}.png", values, is_palette=True)
    lists = folder / "ImageSets" / listing
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in labels))
    return folder


def make_coco(root: Path, labels, folder="stuffthingmaps/val2017", suffix=".png", images="images/val2017") -> Path:
    for stem, values in labels.items():
        save_image(root / images / f"{stem}.jpg")
        save_label(root / folder / f"{stem}{suffix}", values)
    return root


def make_cityscapes(root: Path, labels, suffix="_gtFine_labelIds.png", split="val") -> Path:
    """`labels` is "<city>/<stem>" -> values."""
    for name, values in labels.items():
        save_image(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png")
        save_label(root / "gtFine" / split / f"{name}{suffix}", values)
    return root


def read(path):
    """All of a label file as an array, with its mode."""
    with Image.open(path) as image:
        return np.array(image), image.mode
