"""PASCAL-Context's regions, from the JSON of the PASCAL in Detail API: what convert_context59.py does."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from label_conversion import convert
from seg_id_tables import CONTEXT59_IDS

from last_vit.atomic_file import atomic_file
from last_vit.data.coco import decode_segmentations, naming_entry, read_coco_json

_EXPECTED = "expected trainval_merged.json of the PASCAL in Detail API, with the lists images and annos_segmentation"


@dataclass
class ContextImage:
    """One image of the file with its regions, in the file's order."""

    file_name: str
    height: int
    width: int
    phase: str
    regions: list[tuple[int, Any]] = field(default_factory=list)  # (category id, segmentation)


def read_context(path: Path) -> list[ContextImage]:
    """The images of all phases with their regions; ValueError that names the entry for what is not this format."""
    content, images = read_coco_json(path, ("images", "annos_segmentation"), _EXPECTED), {}
    for place, entry in enumerate(content["images"]):
        with naming_entry(path, "images", place, _EXPECTED):
            size = (entry["height"], entry["width"])
            if not all(type(side) is int and side > 0 for side in size):
                raise ValueError(f"height and width are {size}")
            images[entry["image_id"]] = ContextImage(str(entry["file_name"]), *size, entry["phase"])
    if len(images) < len(content["images"]):
        raise ValueError(f"{path} lists {len(content['images'])} images, but {len(images)} different image_ids")
    for place, entry in enumerate(content["annos_segmentation"]):
        with naming_entry(path, "annos_segmentation", place, _EXPECTED):
            image_id, category_id = entry["image_id"], entry["category_id"]
            if image_id not in images:
                raise ValueError(f"image {image_id} is not in the list of images")
            if category_id not in (0, *CONTEXT59_IDS):
                raise ValueError(f"category {category_id} is none of the 59")
            images[image_id].regions.append((category_id, entry["segmentation"]))
    return list(images.values())


def draw_context(image: ContextImage) -> np.ndarray:
    """The labels of one image: uint8 [H, W], 0 to 59; ValueError for a segmentation that does not fit it."""
    labels = np.zeros((image.height, image.width), dtype=np.uint8)
    for category_id, segmentation in image.regions:
        try:
            mask = decode_segmentations([segmentation], image.height, image.width, union=True)
        except ValueError as error:
            raise ValueError(f"{image.file_name}: region of category {category_id}: {error}") from error
        labels[mask.numpy()] = CONTEXT59_IDS.index(category_id) + 1 if category_id else 0
    return labels


def run(args: argparse.Namespace) -> None:
    """The command convert_context59.py."""
    images = read_context(args.json)
    for phase in ("train", "val"):
        chosen = {Path(image.file_name).stem: image for image in images if image.phase == phase}
        folder = args.output / "SegmentationClassContext"
        sources = {folder / f"{stem}.png": image for stem, image in chosen.items()}
        convert(sources, draw_context, "context59", phase, args)
        with atomic_file(args.output / "ImageSets" / "SegmentationContext" / f"{phase}.txt") as file:
            file.write("".join(f"{stem}\n" for stem in sorted(chosen)).encode())
