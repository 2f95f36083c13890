"""Synthetic photographs for tests, debug configs and the demo: one labelled object in a cluttered scene.

A class is the conjunction of an outline and a surface pattern ("striped star") with a hue around which its colours
scatter, as those of photographed things do; size, orientation, place and proportions are free. Every image also holds
distractors, smaller than the object: the outlines of classes with a plain surface, and irregular blobs with the
patterns of classes, in any colour; the background, drawn without regard to the class, gives nothing. Spectra are broad
(1 / f noise in scene, surfaces and warps), the light falls off to one side, pixels are noisy, and some objects are cut
by the border or partly covered. Most boxes take more than a quarter of the image.

Made to be nearer to photographs than gratings are, and never tuned towards a result of any method; the hue is there so
that a small ViT learns something within the demo's minutes. Everything is a pure function of (seed, split, index) and
the sizes. `write_*` write a split out in an official layout, so that the real loaders read it; only the labelled object
is annotated, for distractors belong to no class.
"""

import colorsys
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_tools
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor

from last_vit.data import synthetic_drawing as parts
from last_vit.data.imagenet_layout import SPLITS
from last_vit.data.voc import voc_colors
from last_vit.runtime import progress

MAX_CLASSES = len(parts.SHAPES) * len(parts.PATTERNS)
_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))  # between the hues of neighbouring classes: any number spreads evenly
_JPEG = {"format": "JPEG", "quality": 95}
# Upper ends of the hues in degrees, and their names when light and when dark.
_HUES = (
    (15, "red", "red"), (45, "orange", "brown"), (68, "yellow", "olive"), (160, "green", "green"),
    (195, "turquoise", "teal"), (255, "blue", "blue"), (290, "purple", "purple"), (345, "pink", "purple"),
    (360, "red", "red"),
)  # fmt: skip
_GREYS = ((0.25, "black"), (0.69, "gray"), (1.0, "white"))  # upper ends of the brightest channel
_LIGHT = 0.59  # of the brightest channel, from where on a colour has its light name
_LEAST_SATURATION = 0.22  # below it, a colour is a grey
COLOURS = tuple(dict.fromkeys([name for row in _HUES for name in row[1:]] + [name for _, name in _GREYS]))
_MIDDLE = (0.4, 0.6)  # of each side: a narrow one, for objects keep near it
_PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
PLACES = tuple(place for row in _PLACES for place in row)


class SyntheticSample(NamedTuple):
    """One rendered image, its object's visible part as mask and tight box, and a caption of object and scene."""

    image: Image.Image
    label: int
    class_name: str
    box_xyxy: Tensor  # float32 [4], pixels, x2 and y2 exclusive
    mask: Tensor  # bool [H, W], the object's visible pixels
    caption: str


class SyntheticObjects(Dataset):
    """Data set of rendered images with the samples of `ImageNetDataset` (each has exactly one object).

    Image i has label i % num_classes; the splits "train" and "val" share no image. `image_size` is the side in pixels,
    at least 16; of 2 to `MAX_CLASSES` classes up to 5 share neither outline nor pattern, up to 8 no outline. Without a
    `transform`, which takes a PIL RGB image, images are uint8 [3, H, W]. `classes` are names in the order of the
    labels, such as "striped star", `labels` int64 [num_images].
    """

    def __init__(
        self,
        num_images: int,
        split: str,
        image_size: int = 64,
        num_classes: int = 32,
        seed: int = 0,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if num_images < 1 or image_size < 16 or seed < 0:
            got = f"got {num_images}, {image_size} and {seed}"
            raise ValueError(f"num_images must be at least 1, image_size at least 16 and seed not negative, {got}")
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be in [2, {MAX_CLASSES}] (outlines x patterns), got {num_classes}")
        self.split, self.image_size, self.seed, self.transform = split, image_size, seed, transform
        # 8 outlines and 5 patterns have no common divisor, so walking along both meets every pair once; neighbours
        # differ in both, so few classes are easy and more of them are harder
        num_shapes, num_patterns = len(parts.SHAPES), len(parts.PATTERNS)
        cues = [(parts.SHAPES[c % num_shapes], parts.PATTERNS[c % num_patterns]) for c in range(num_classes)]
        self.classes = [f"{pattern} {shape}" for shape, pattern in cues]
        self.labels = np.arange(num_images, dtype=np.int64) % num_classes
        self._cues = cues

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.render(index)
        return {
            "image": pil_to_tensor(sample.image) if self.transform is None else self.transform(sample.image),
            "label": int(self.labels[index]),
            "index": index,
            "box_xyxy": sample.box_xyxy,
            "image_hw": torch.tensor([self.image_size, self.image_size]),
            "num_objects": 1,
        }

    def render(self, index: int) -> SyntheticSample:
        """Draw image `index` of [0, len) with its box, mask and caption; IndexError from len on."""
        label = int(self.labels[index])
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        shape, pattern = self._cues[label]
        kind = parts.BACKGROUNDS[rng.integers(len(parts.BACKGROUNDS))]
        pixels, mask = parts.compose(shape, pattern, _GOLDEN_ANGLE * label, kind, self.image_size, rng)
        caption = describe(self.classes[label], kind, pixels, mask)
        mask = torch.from_numpy(mask)
        box = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])  # torchvision's corners are the last pixels
        return SyntheticSample(Image.fromarray(pixels), label, self.classes[label], box, mask, caption)


def describe(class_name: str, background: str, pixels: np.ndarray, mask: np.ndarray) -> str:
    """A caption, such as "a photo of a red striped star in the upper left, on a cloudy background".

    Colour and place are read off the finished pixels (uint8 [H, W, 3]) and the object's visible mask (bool [H, W], not
    empty), so the caption says what is there, not what was drawn.
    """
    colour = colour_name(pixels[mask])
    article = "an" if colour[0] in "aeiou" else "a"
    return f"a photo of {article} {colour} {class_name} {place_name(mask)}, on a {background} background"


def colour_name(pixels: np.ndarray) -> str:
    """The word, one of `COLOURS`, for the mean colour of these pixels (uint8 [M, 3])."""
    hue, saturation, value = colorsys.rgb_to_hsv(*pixels.mean(axis=0) / 255)
    if saturation < _LEAST_SATURATION or value < _GREYS[0][0]:
        return next(name for end, name in _GREYS if value <= end)
    light, dark = next(names for end, *names in _HUES if 360 * hue <= end)
    return light if value >= _LIGHT else dark


def place_name(mask: np.ndarray) -> str:
    """Where on the image, in words of `PLACES`, the centre of gravity of a mask (bool [H, W]) lies."""
    row, column = (
        int(np.searchsorted(_MIDDLE, (index.mean() + 0.5) / side, side="right"))
        for index, side in zip(mask.nonzero(), mask.shape, strict=True)
    )
    return _PLACES[row][column]


def write_imagenet(samples: SyntheticObjects, root: str | Path) -> None:
    """Write `<split>/<wnid>/*.JPEG`, `Annotations/CLS-LOC/<split>/` and `LOC_synset_mapping.txt`.

    Class folders are named so that they sort in the order of the labels. As in ImageNet, the XML files of val are flat
    and those of train lie in class folders; their corners are the boxes' x2, y2 as they are (exclusive).
    """
    root, split = Path(root), samples.split
    wnids = [f"n{label:08d}" for label in range(len(samples.classes))]
    annotations = root / "Annotations" / "CLS-LOC" / split
    for wnid in wnids:
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        (annotations / wnid if split == "train" else annotations).mkdir(parents=True, exist_ok=True)
    _write_lines(root / "LOC_synset_mapping.txt", map(" ".join, zip(wnids, samples.classes, strict=True)))
    for index, sample in _rendered(samples):
        wnid = wnids[sample.label]
        stem, xml = f"{wnid}_{index}", annotations / wnid
        if split == "val":
            stem, xml = f"ILSVRC2012_val_{index + 1:08d}", annotations
        sample.image.save(root / split / wnid / f"{stem}.JPEG", **_JPEG)
        _write_xml(xml / f"{stem}.xml", f"{stem}.JPEG", sample, wnid, sample.box_xyxy.int().tolist())


def write_voc(samples: SyntheticObjects, root: str | Path) -> None:
    """Write a VOC 2012 devkit, `VOC2012/{JPEGImages,Annotations,SegmentationClass,SegmentationObject,ImageSets}`.

    Class names have "_" for spaces; class c has colour index c + 1 in SegmentationClass. As in VOC, corners are the
    first and last pixel counted from 1, and ImageSets/Main holds one list per class with 1 and -1.
    """
    devkit, split = Path(root) / "VOC2012", samples.split
    places = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject")
    images, annotations, class_masks, object_masks = folders = [devkit / place for place in places]
    main, segmentation = devkit / "ImageSets" / "Main", devkit / "ImageSets" / "Segmentation"
    for folder in (*folders, main, segmentation):
        folder.mkdir(parents=True, exist_ok=True)
    names = [name.replace(" ", "_") for name in samples.classes]
    stems = [f"{2008 if split == 'train' else 2009}_{index:06d}" for index in range(len(samples))]
    for index, sample in _rendered(samples):
        stem = stems[index]
        x1, y1, x2, y2 = sample.box_xyxy.int().tolist()
        corners = [x1 + 1, y1 + 1, x2, y2]
        sample.image.save(images / f"{stem}.jpg", **_JPEG)
        _write_xml(annotations / f"{stem}.xml", f"{stem}.jpg", sample, names[sample.label], corners)
        _save_palette(sample.mask, sample.label + 1, class_masks / f"{stem}.png")
        _save_palette(sample.mask, 1, object_masks / f"{stem}.png")
    _write_lines(main / f"{split}.txt", stems)
    _write_lines(segmentation / f"{split}.txt", stems)
    for label, name in enumerate(names):
        presence = np.where(samples.labels == label, " 1", "-1")
        _write_lines(main / f"{name}_{split}.txt", map(" ".join, zip(stems, presence, strict=True)))


def write_coco(samples: SyntheticObjects, root: str | Path) -> None:
    """Write `<split>2017/*.jpg` and `annotations/{instances,captions}_<split>2017.json`.

    Category ids count from 1. Segmentations are run lengths, which pycocotools reads for single objects too; `bbox` is
    (x, y, width, height).
    """
    folder, annotations = Path(root) / f"{samples.split}2017", Path(root) / "annotations"
    for path in (folder, annotations):
        path.mkdir(parents=True, exist_ok=True)
    size = samples.image_size
    images, objects, captions = [], [], []
    for index, sample in _rendered(samples):
        number = index + 1
        name = f"{number:012d}.jpg"
        sample.image.save(folder / name, **_JPEG)
        x1, y1, x2, y2 = sample.box_xyxy.tolist()
        runs = mask_tools.encode(np.asfortranarray(sample.mask.numpy(), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "height": size, "width": size})
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": sample.label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(sample.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [size, size], "counts": runs["counts"].decode()},
            }
        )
        captions.append({"id": number, "image_id": number, "caption": sample.caption})
    categories = [
        {"id": label, "name": name, "supercategory": name.split()[1]} for label, name in enumerate(samples.classes, 1)
    ]
    head = {"info": {"description": f"synthetic objects, seed {samples.seed}"}, "licenses": [], "images": images}
    instances = {**head, "annotations": objects, "categories": categories}
    for kind, content in (("instances", instances), ("captions", {**head, "annotations": captions})):
        (annotations / f"{kind}_{samples.split}2017.json").write_text(json.dumps(content), encoding="ascii")


def _rendered(samples: SyntheticObjects) -> Iterator[tuple[int, SyntheticSample]]:
    for index in progress(range(len(samples)), f"writing {samples.split}", "image"):
        yield index, samples.render(index)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


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
