"""Write synthetic images out in the official layouts of ImageNet, VOC and COCO, so that the real loaders read them.

Each function writes the split of one `SyntheticObjects` and may be called again with the other split for the same root.
Images are JPEG. Only the labelled object is annotated: distractors belong to no class.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from last_vit.data.seg_palette import voc_colors
from last_vit.data.synthetic import SyntheticObjects, SyntheticSample

_JPEG_QUALITY = 95


def write_imagenet(samples: SyntheticObjects, root: str | Path) -> None:
    """Write `<split>/<wnid>/*.JPEG`, `Annotations/CLS-LOC/<split>/` and `LOC_synset_mapping.txt`.

    Class folders are named so that they sort in the order of the labels. As in ImageNet, the XML files of val are flat
    and those of train lie in class folders; their corners are the boxes' x2, y2 as they are (exclusive).
    """
    root = Path(root)
    split = samples.split
    wnids = [f"n{label:08d}" for label in range(len(samples.classes))]
    annotations = root / "Annotations" / "CLS-LOC" / split
    annotations.mkdir(parents=True, exist_ok=True)
    for wnid in wnids:
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        if split == "train":
            (annotations / wnid).mkdir(exist_ok=True)
    lines = [f"{wnid} {name}\n" for wnid, name in zip(wnids, samples.classes, strict=True)]
    (root / "LOC_synset_mapping.txt").write_text("".join(lines), encoding="ascii")
    for index, sample in _rendered(samples):
        wnid = wnids[sample.label]
        if split == "train":
            stem, folder = f"{wnid}_{index}", annotations / wnid
        else:
            stem, folder = f"ILSVRC2012_val_{index + 1:08d}", annotations
        _save_jpeg(sample.image, root / split / wnid / f"{stem}.JPEG")
        _write_xml(folder / f"{stem}.xml", f"{stem}.JPEG", sample, wnid, sample.box_xyxy.int().tolist())


def write_voc(samples: SyntheticObjects, root: str | Path) -> None:
    """Write a VOC 2012 devkit, `VOC2012/{JPEGImages,Annotations,SegmentationClass,SegmentationObject,ImageSets}`.

    Class names have "_" for spaces; class c has colour index c + 1 in SegmentationClass. As in VOC, corners are the
    first and last pixel counted from 1, and ImageSets/Main holds one list per class with 1 and -1.
    """
    devkit = Path(root) / "VOC2012"
    folders = ["JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"]
    for name in [*folders, "ImageSets/Main", "ImageSets/Segmentation"]:
        (devkit / name).mkdir(parents=True, exist_ok=True)
    names = [name.replace(" ", "_") for name in samples.classes]
    year = 2008 if samples.split == "train" else 2009
    stems = [f"{year}_{index:06d}" for index in range(len(samples))]
    for index, sample in _rendered(samples):
        stem = stems[index]
        x1, y1, x2, y2 = sample.box_xyxy.int().tolist()
        _save_jpeg(sample.image, devkit / "JPEGImages" / f"{stem}.jpg")
        path = devkit / "Annotations" / f"{stem}.xml"
        _write_xml(path, f"{stem}.jpg", sample, names[sample.label], [x1 + 1, y1 + 1, x2, y2])
        _save_palette(sample.mask, sample.label + 1, devkit / "SegmentationClass" / f"{stem}.png")
        _save_palette(sample.mask, 1, devkit / "SegmentationObject" / f"{stem}.png")
    listing = "".join(f"{stem}\n" for stem in stems)
    for kind in ("Main", "Segmentation"):
        (devkit / "ImageSets" / kind / f"{samples.split}.txt").write_text(listing, encoding="ascii")
    for label, name in enumerate(names):
        presence = np.where(samples.labels == label, " 1", "-1")
        lines = [f"{stem} {mark}\n" for stem, mark in zip(stems, presence, strict=True)]
        (devkit / "ImageSets" / "Main" / f"{name}_{samples.split}.txt").write_text("".join(lines), encoding="ascii")


def write_coco(samples: SyntheticObjects, root: str | Path) -> None:
    """Write `<split>2017/*.jpg` and `annotations/{instances,captions}_<split>2017.json`.

    Category ids count from 1. Segmentations are uncompressed run lengths, which pycocotools reads for single objects
    too; `bbox` is (x, y, width, height).
    """
    root = Path(root)
    folder = root / f"{samples.split}2017"
    for path in (folder, root / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    size = samples.image_size
    images, objects, captions = [], [], []
    for index, sample in _rendered(samples):
        number = index + 1
        name = f"{number:012d}.jpg"
        _save_jpeg(sample.image, folder / name)
        x1, y1, x2, y2 = sample.box_xyxy.tolist()
        images.append({"id": number, "file_name": name, "height": size, "width": size})
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": sample.label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(sample.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [size, size], "counts": _run_lengths(sample.mask)},
            }
        )
        captions.append({"id": number, "image_id": number, "caption": sample.caption})
    categories = [
        {"id": label + 1, "name": name, "supercategory": name.split()[1]} for label, name in enumerate(samples.classes)
    ]
    head = {"info": {"description": f"synthetic objects, seed {samples.seed}"}, "licenses": [], "images": images}
    instances = {**head, "annotations": objects, "categories": categories}
    for name, content in (("instances", instances), ("captions", {**head, "annotations": captions})):
        _write_json(root / "annotations" / f"{name}_{samples.split}2017.json", content)


def _rendered(samples: SyntheticObjects) -> Iterator[tuple[int, SyntheticSample]]:
    for index in tqdm(range(len(samples)), desc=f"writing {samples.split}", unit=" images", disable=None, leave=False):
        yield index, samples.render(index)


def _save_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path, format="JPEG", quality=_JPEG_QUALITY)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="ascii")


def _write_xml(path: Path, file_name: str, sample: SyntheticSample, name: str, corners: list[int]) -> None:
    root = Element("annotation")
    SubElement(root, "filename").text = file_name
    size = SubElement(root, "size")
    for side, value in (("width", sample.image.width), ("height", sample.image.height), ("depth", 3)):
        SubElement(size, side).text = str(value)
    SubElement(root, "segmented").text = "1"
    element = SubElement(root, "object")
    for tag, text in (("name", name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        SubElement(element, tag).text = text
    box = SubElement(element, "bndbox")
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        SubElement(box, tag).text = str(value)
    indent(root)
    ElementTree(root).write(path, encoding="us-ascii")


def _save_palette(mask: Tensor, value: int, path: Path) -> None:
    """Palette PNG with `value` on the mask and 0 elsewhere, in VOC's colours."""
    image = Image.fromarray(mask.numpy().astype(np.uint8) * np.uint8(value))
    image.putpalette(voc_colors().ravel().tolist())
    image.save(path)


def _run_lengths(mask: Tensor) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with a run of zeros (possibly empty)."""
    column_wise = mask.numpy().ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(column_wise, prepend=0)).tolist()
    bounds = [0, *changes, column_wise.size]
    return [stop - start for start, stop in pairwise(bounds)]
