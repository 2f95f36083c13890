"""Average precision per class of detected boxes or masks, as COCO's and LVIS's own code defines it.

Matching and accumulation are those of faster-coco-eval, whose numbers are pycocotools'. They run on a few classes at a
time and only on the images on which one of them is annotated or detected: no class's AP depends on any other, and the
table of LVIS's 19,809 images x 1,203 classes is never made. IoU is pycocotools', of the run lengths as they are.

COCO: an image's best `max_dets` detections of each class count. LVIS: its best `max_dets` of all classes together; a
detection of a class that is neither annotated nor verified as absent on the image does not count at all, and one of a
class that is not fully annotated there is never wrong.

Letters: C classes, n detections of one image. AP and AR are in [0, 1], NaN for a class without any object.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from ov_classes import OvClasses
from pycocotools import mask as mask_tools

from last_vit.data.coco import encode_segmentation

KINDS = ("box", "mask")
_CLASSES_AT_A_TIME = 8
_Entries = list[dict[str, Any]]  # objects or detections as faster-coco-eval takes them


@dataclass(frozen=True)
class ImageDetections:
    """What a detector found on one image, in the image's own pixels."""

    image_id: int
    boxes_xyxy: np.ndarray  # float [n, 4]
    scores: np.ndarray  # float [n]
    labels: np.ndarray  # int [n], in [0, C)
    masks: list[dict[str, Any]] | None = None  # n run lengths, "counts" as text, as JSON has them; None without masks

    def as_results(self, classes: OvClasses) -> list[dict[str, Any]]:
        """COCO's results: image_id, category_id, bbox (x, y, width, height), score and, with masks, segmentation."""
        boxes = self.boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        results = [
            {"image_id": self.image_id, "category_id": classes.category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(self.labels.tolist(), boxes.tolist(), self.scores.tolist(), strict=True)
        ]
        for entry, mask in zip(results if self.masks is not None else (), self.masks or (), strict=True):
            entry["segmentation"] = mask
        return results

    def select(self, chosen: np.ndarray) -> "ImageDetections":
        """Some of them, by places or by truth values."""
        masks = self.masks
        if masks is not None:
            masks = [masks[place] for place in np.arange(len(masks))[chosen].tolist()]
        return ImageDetections(self.image_id, self.boxes_xyxy[chosen], self.scores[chosen], self.labels[chosen], masks)


class ClassAP(NamedTuple):
    """Of every class, float64 [C]: means over the IoU thresholds 0.5, 0.55, ..., 0.95, and AP at 0.5.

    `ar` is the recall of all detections that count; `curves` [C, 2, 101] is the precision at IoU 0.5 and 0.75 where
    the recall is 0, 0.01, ..., 1.
    """

    ap: np.ndarray
    ap50: np.ndarray
    ar: np.ndarray
    curves: np.ndarray


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """For the block. Its searches for cycles, of which there are none among detections, would cost a quarter more."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_garbage_collector_off()
def detection_ap(
    content: Mapping[str, Any],
    classes: OvClasses,
    detections: Sequence[ImageDetections],
    kind: Literal["box", "mask"] = "box",
    max_dets: int = 300,
) -> ClassAP:
    """AP and AR of detections, at most one entry per image, on all images of a file.

    Content is that of `read_coco_json`, classes are those of the same file; LVIS's rules hold when these are LVIS's.
    ValueError: Boxes or scores that are not finite, or an annotation without such a shape or area.
    """
    found = ClassAP(*np.full((3, len(classes)), np.nan), np.full((len(classes), 2, 101), np.nan))
    for labels, *sides in _parts(content, classes, detections, kind, max_dets):
        evaluation = _evaluate(*sides, max_dets, classes.is_lvis)
        precision, recall = (np.asarray(evaluation.eval[name])[..., 0, 0].T for name in ("precision", "recall"))
        has_objects = recall.max(axis=1) > -1  # precision is [classes, 101 recalls, 10 IoU thresholds]
        labels, precision, recall = labels[has_objects], precision[has_objects], recall[has_objects]
        found.ap[labels], found.ap50[labels] = precision.mean(axis=(1, 2)), precision[..., 0].mean(axis=1)
        found.ar[labels], found.curves[labels] = recall.mean(axis=1), precision[..., [0, 5]].transpose(0, 2, 1)
    return found


@_garbage_collector_off()
def match_boxes(
    content: Mapping[str, Any], classes: OvClasses, detections: Sequence[ImageDetections], max_dets: int = 300
) -> tuple[_Entries, _Entries]:
    """Objects and detections that count, as COCO matches their boxes at IoU 0.5.

    Each has image_id, category_id, shape (its box x, y, w, h), a detection its score, and "match", the other one or
    None. Crowds and their detections are left out, and what nobody can call wrong (LVIS). Errors as `detection_ap`.
    """
    unsure = {entry["id"]: entry.get("not_exhaustive_category_ids", ()) for entry in content["images"]}
    objects, found = [], []
    for _, head, truth, guess in _parts(content, classes, detections, "box", max_dets):
        pairs = _evaluate(head, truth, guess, max_dets, classes.is_lvis, [0.5]).eval["matched"]
        for pair in pairs:
            detection_id, object_id = map(int, pair.split("_"))
            detection, target = guess[detection_id - 1], truth[object_id - 1]
            detection["match"], target["match"] = target, detection
            detection["iscrowd"] = target["iscrowd"]
        objects += [entry for entry in truth if not entry["iscrowd"]]
        certain = (each for each in guess if "match" in each or each["category_id"] not in unsure[each["image_id"]])
        found += [entry for entry in certain if not entry["iscrowd"]]
    return objects, found


def _parts(
    content: Mapping[str, Any], classes: OvClasses, detections: Sequence[ImageDetections], kind: str, max_dets: int
) -> Iterator[tuple[np.ndarray, dict[str, Any], _Entries, _Entries]]:
    """A few classes at a time, of which one has objects: labels, images and categories, objects, detections."""
    images = {entry["id"]: entry for entry in content["images"]}
    objects: list[_Entries] = [[] for _ in range(len(classes))]
    for entry in content["annotations"]:
        label = classes.label_of[entry["category_id"]]
        objects[label].append(_object(entry, kind, images[entry["image_id"]]))
    guesses: list[_Entries] = [[] for _ in range(len(classes))]
    counted = _counted_labels(content, classes) if classes.is_lvis else None
    for image in detections:
        if not (np.isfinite(image.scores).all() and np.isfinite(image.boxes_xyxy).all()):
            raise ValueError(
                f"image {image.image_id}: boxes or scores are not finite; the detector's weights may be broken"
            )
        order = np.argsort(-image.scores, kind="stable")
        if counted is not None:
            order = order[:max_dets]
            order = order[[label in counted[image.image_id] for label in image.labels[order].tolist()]]
        counting, shape = image.select(order), "bbox" if kind == "box" else "segmentation"
        for label, entry in zip(counting.labels.tolist(), counting.as_results(classes), strict=True):
            entry.update(shape=entry[shape], area=entry["bbox"][2] * entry["bbox"][3], iscrowd=0)
            guesses[label].append(entry)
    categories = {entry["id"]: entry for entry in content["categories"]}
    for start in range(0, len(classes), _CLASSES_AT_A_TIME):
        part = slice(start, start + _CLASSES_AT_A_TIME)
        truth, guess = list(chain(*objects[part])), list(chain(*guesses[part]))
        if not truth:
            continue
        shown = sorted({entry["image_id"] for entry in (*truth, *guess)})
        head = {
            "images": [images[number] for number in shown],
            "categories": [categories[number] for number in classes.category_ids[part]],
        }
        yield np.arange(len(classes))[part], head, truth, guess


def _evaluate(
    head: dict[str, Any],
    truth: _Entries,
    guess: _Entries,
    max_dets: int,
    is_lvis: bool,
    thresholds: Sequence[float] | None = None,
) -> "_ShapeEvaluation":
    """Its "precision" is [IoU thresholds, 101 recalls, categories, 1, 1], "recall" without recalls; -1 without objects.

    "matched" is {"<detection id>_<object id>": IoU}, at any threshold; None is COCO's ten.
    """
    for side in (truth, guess):
        for number, entry in enumerate(side, start=1):  # 0 is the code's mark for "not matched"
            entry["id"] = number
    sides = [COCO({**head, "annotations": side}) for side in (truth, guess)]
    evaluation = _ShapeEvaluation(*sides, "bbox", lvis_style=is_lvis)
    evaluation.params.maxDets = [max_dets]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    if thresholds is not None:
        evaluation.params.iouThrs = np.array(thresholds)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


class _ShapeEvaluation(COCOeval_faster):
    """faster-coco-eval that compares entries' "shape", a box or a mask; in its mask mode it would encode all anew."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802 (the name that it is called by)
        """IoU [detections, objects] of one class on one image; [] without either."""
        sides = (self.dt_dataset, self.gt_dataset)
        found, objects = (side.get_instances([imgId], [catId], True)[0][0] for side in sides)
        if not found or not objects:
            return []
        found = found[: self.params.maxDets[-1]]  # they come best first
        shapes = [[entry["shape"] for entry in entries] for entries in (found, objects)]
        return mask_tools.iou(*shapes, [entry["iscrowd"] for entry in objects])


def _object(entry: Mapping[str, Any], kind: str, image: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation as faster-coco-eval takes it."""
    try:
        if kind == "box":
            shape = [float(value) for value in entry["bbox"]]
        else:
            shape = encode_segmentation(entry["segmentation"], image["height"], image["width"])
        kept = {name: entry[name] for name in ("image_id", "category_id", "area")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"annotation {entry.get('id')} has no usable {kind} or area: {error}") from error
    return {**kept, "shape": shape, "iscrowd": entry.get("iscrowd", 0)}


def _counted_labels(content: Mapping[str, Any], classes: OvClasses) -> dict[int, set[int]]:
    """Image id -> labels that are annotated or verified as absent on it (LVIS)."""
    label_of = classes.label_of
    counted = {entry["id"]: {label_of[number] for number in entry["neg_category_ids"]} for entry in content["images"]}
    for entry in content["annotations"]:
        counted[entry["image_id"]].add(label_of[entry["category_id"]])
    return counted
