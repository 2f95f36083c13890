"""COCO's or LVIS's JSON to detectron2's list of dictionaries, with what cannot be trained on left out and counted.

The rule for objects, in training:

- Boxes are clipped to their image. One less than a pixel wide or high, or wholly outside, is left out; numbers that are
  none, NaN or infinity are an error.
- Objects of novel classes are left out, whatever file they come from.
- Where masks are asked for: polygons of less than three points are dropped, and an object without any mask.
- Crowd regions are no objects, as everywhere in detectron2.
- Images without any annotation of a base class, and images with a side of less than 32 pixels, are left out. One whose
  annotations are all left out for another reason (a crowd, a box of half a pixel) stays, as one of background.

In test every image of the file stays, and none carries annotations: what is right is the evaluator's business.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from ov_classes import OvClasses, read_instances

from last_vit.checkpoint import shorten

MIN_SIDE = 32
_NO_MASK = "object without a mask"


class OvImages(NamedTuple):
    """The images of one file."""

    records: list[dict[str, Any]]  # detectron2's dictionaries, by image id
    classes: OvClasses  # whose labels the annotations' category_id are
    left_out: Counter[str]  # by the rule above, reason -> count


def load_ov_json(
    json_file: str | Path,
    image_root: str | Path,
    train: bool,
    masks: bool = False,
    novel: Iterable[str] | None = None,
) -> OvImages:
    """Read a file of instances, to train by the rule above or to test; `masks` keeps the segmentations.

    `image_root` is the folder with the images (train2017/); for LVIS, whose images come from both, the folder that
    holds train2017/ and val2017/. `novel` is as in `read_ov_classes`.
    FileNotFoundError: No such file, or no image where the first one should be. ValueError: Not COCO's or LVIS's
    instances, or nothing left to train on; the message names file and entry.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    content, classes = read_instances(json_file, novel)
    left_out: Counter[str] = Counter()
    try:
        entries = sorted(content["images"], key=lambda entry: entry["id"])
        records = [image_record(entry, image_root, classes.is_lvis) for entry in entries]
        if train:
            record_of, is_base = {record["image_id"]: record for record in records}, classes.is_base.tolist()
            for record in records:
                record["annotations"] = []
            annotated = {e["image_id"] for e in content["annotations"] if is_base[classes.label_of[e["category_id"]]]}
            for entry in content["annotations"]:
                label, record = classes.label_of[entry["category_id"]], record_of[entry["image_id"]]
                found = _object(entry, label, record, masks) if is_base[label] else "object of a novel class"
                if isinstance(found, str):
                    left_out[found] += 1
                else:
                    record["annotations"].append(found)
            if left_out[_NO_MASK] and not any(record["annotations"] for record in records):
                raise ValueError(
                    f"none of its {left_out[_NO_MASK]} objects has a mask: train without a mask head "
                    "(model.roi_heads.masks=False evaluation.kinds=[box]), or take a file with segmentations"
                )
            records = [record for record in records if _is_usable(record, annotated, left_out)]
        if not records:
            raise ValueError(f"no image is left to train on ({dict(left_out)})")
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}") from error
    first = Path(records[0]["file_name"])
    if not first.is_file():
        raise FileNotFoundError(f"no image {first}, which {json_file} lists: is image_root {image_root} the right one?")
    return OvImages(records, classes, left_out)


def image_record(entry: Mapping[str, Any], image_root: Path, is_lvis: bool) -> dict[str, Any]:
    """An image as detectron2 has it; ValueError for one without size or file."""
    height, width = entry.get("height"), entry.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ValueError(f"image {entry['id']} has the height {height!r} and the width {width!r}")
    # LVIS's validation set has images of train2017, which only the address tells
    address = entry.get("coco_url") if is_lvis else None
    name = "/".join(address.split("/")[-2:]) if isinstance(address, str) else entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"image {entry['id']} has no file_name{' and no coco_url' if is_lvis else ''}")
    return {"file_name": str(image_root / name), "height": height, "width": width, "image_id": entry["id"]}


def _object(entry: Mapping[str, Any], label: int, record: Mapping[str, Any], masks: bool) -> dict[str, Any] | str:
    """An annotation as detectron2 has it, or the reason why it is left out."""
    if entry.get("iscrowd", 0):
        return "crowd region"
    box = clip_box(entry.get("bbox"), record["height"], record["width"])
    if box is None:
        return "box outside its image or under a pixel"
    kept = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
    if masks:
        segmentation = entry.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [part for part in segmentation if isinstance(part, list) and len(part) >= 6]
        if not segmentation:
            return _NO_MASK
        kept["segmentation"] = segmentation
    return kept


def clip_box(bbox: Any, height: int, width: int) -> list[float] | None:
    """COCO's (x, y, width, height) -> the part (x1, y1, x2, y2) inside the image.

    None where there is none, or where the whole box is less than a pixel wide or high.
    ValueError: Not four finite numbers.
    """
    is_box = isinstance(bbox, list) and len(bbox) == 4
    if not is_box or not all(type(value) in (int, float) and math.isfinite(value) for value in bbox):
        raise ValueError(f"bbox is {shorten([bbox])}, expected four numbers [x, y, width, height]")
    x, y, box_width, box_height = bbox
    if min(box_width, box_height) < 1:
        return None
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + box_width, float(width)), min(y + box_height, float(height))
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def _is_usable(record: Mapping[str, Any], annotated: Set[int], left_out: Counter[str]) -> bool:
    reason = None
    if record["image_id"] not in annotated:
        reason = "image without objects"
    elif min(record["height"], record["width"]) < MIN_SIDE:
        reason = f"image with a side of less than {MIN_SIDE} pixels"
    left_out.update([reason] if reason else [])
    return reason is None
