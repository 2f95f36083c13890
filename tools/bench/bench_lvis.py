"""Time of our LVIS evaluation against per-category matching and accumulation in Python, on synthetic detections.

The plain version goes the way of LVIS's own code, in few lines: every class on every image, its detections matched one
by one at each of the ten IoU thresholds, its precisions accumulated in a loop. IoU is pycocotools' on both sides. Both
see the same objects and detections, half of which are of classes that are annotated on the image, and must agree on
every class's AP to 1e-9. On more images, where classes are more often there, the ratio is another one.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from bench_report import BenchReport, alternate, ratio
from detection_ap import ImageDetections, detection_ap
from ov_classes import OvClasses, read_ov_classes
from pycocotools import mask as mask_tools

GOAL, MAX_DETS, NUM_CLASSES = 5.0, 300, 1203
HEIGHT, WIDTH, NUM_OBJECTS, NUM_SHOWN, NUM_ABSENT = 480, 640, 11, 6, 10
IOU_THRESHOLDS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)


def synthetic(num_images: int, num_dets: int, num_classes: int) -> tuple[dict[str, Any], list[ImageDetections]]:
    """Objects and jittered detections of them; on each image one class is not exhaustively annotated."""
    rng = np.random.default_rng(0)
    images, annotations, detections = [], [], []
    for number in range(1, num_images + 1):
        shown = rng.choice(num_classes, NUM_SHOWN, replace=False)
        absent = [int(label) + 1 for label in rng.choice(num_classes, NUM_ABSENT, replace=False) if label not in shown]
        images.append({"id": number, "height": HEIGHT, "width": WIDTH, "neg_category_ids": absent})
        images[-1]["not_exhaustive_category_ids"] = [int(shown[0]) + 1]
        corners, sides = rng.uniform(0, 360, (NUM_OBJECTS, 2)), rng.uniform(10, 80, (NUM_OBJECTS, 2))
        labels = rng.choice(shown, NUM_OBJECTS)
        truth = np.concatenate([corners, corners + sides], axis=1)
        for box, label in zip(truth, labels.tolist(), strict=True):
            bbox = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": bbox}
            annotations.append({**entry, "area": bbox[2] * bbox[3]})
        source = rng.integers(0, NUM_OBJECTS, num_dets)
        found = truth[source] + rng.normal(0, 6, (num_dets, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        guessed = np.where(rng.random(num_dets) < 0.5, labels[source], rng.integers(0, num_classes, num_dets))
        scores = rng.random(num_dets).astype(np.float32)
        detections.append(ImageDetections(number, found.astype(np.float32), scores, guessed))
    categories = [
        {"id": label + 1, "name": f"class {label}", "frequency": "rcf"[label % 3]} for label in range(num_classes)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def plain_ap(
    content: dict[str, Any], classes: OvClasses, detections: list[ImageDetections]
) -> tuple[np.ndarray, np.ndarray]:
    """AP and AP50 [C] as LVIS defines them; NaN for a class without objects."""
    objects_of, found_of, shown_on = defaultdict(list), defaultdict(list), defaultdict(set)
    for entry in content["annotations"]:
        objects_of[entry["category_id"], entry["image_id"]].append(entry["bbox"])
        shown_on[entry["image_id"]].add(entry["category_id"])
    for image in detections:
        for place in np.argsort(-image.scores, kind="stable")[:MAX_DETS]:
            x1, y1, x2, y2 = image.boxes_xyxy[place].tolist()
            category = classes.category_ids[image.labels[place]]
            found_of[category, image.image_id].append((float(image.scores[place]), [x1, y1, x2 - x1, y2 - y1]))
    ap, ap50 = [], []
    for category in classes.category_ids:
        scores, matched, ignored = [], [[] for _ in IOU_THRESHOLDS], [[] for _ in IOU_THRESHOLDS]
        num_objects = 0
        for image in content["images"]:
            objects, found = objects_of[category, image["id"]], found_of[category, image["id"]]
            if category not in image["neg_category_ids"] and category not in shown_on[image["id"]]:
                continue
            num_objects += len(objects)
            ious = mask_tools.iou([box for _, box in found], objects, [0] * len(objects)) if objects else []
            is_partial = category in image["not_exhaustive_category_ids"]
            scores += [score for score, _ in found]
            for place, threshold in enumerate(IOU_THRESHOLDS):
                hits = plain_match(ious, len(found), len(objects), threshold)
                matched[place] += hits
                ignored[place] += [is_partial and not hit for hit in hits]
        order = np.argsort(-np.array(scores), kind="stable")
        precisions = [
            plain_precision(order, *both, num_objects) if num_objects else np.nan
            for both in zip(matched, ignored, strict=True)
        ]
        ap.append(np.mean(precisions))
        ap50.append(precisions[0])
    return np.array(ap), np.array(ap50)


def plain_match(ious: np.ndarray, num_found: int, num_objects: int, threshold: float) -> list[bool]:
    """Whether each detection, best first, is given the free object that it overlaps most."""
    is_free, hits = [True] * num_objects, []
    for row in range(num_found):
        best, chosen = min(threshold, 1 - 1e-10), None
        for column in range(num_objects):
            if is_free[column] and ious[row][column] >= best:
                best, chosen = ious[row][column], column
        hits.append(chosen is not None)
        if chosen is not None:
            is_free[chosen] = False
    return hits


def plain_precision(order: np.ndarray, matched: list[bool], ignored: list[bool], num_objects: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one."""
    right = wrong = 0
    recalls, precisions = [], []
    for place in order:
        if not ignored[place]:
            right, wrong = right + matched[place], wrong + (not matched[place])
        recalls.append(right / num_objects)
        precisions.append(right / (right + wrong + np.spacing(1)))
    for place in range(len(precisions) - 1, 0, -1):
        precisions[place - 1] = max(precisions[place - 1], precisions[place])
    places = np.searchsorted(recalls, RECALLS, side="left")
    return float(np.mean([precisions[place] if place < len(precisions) else 0.0 for place in places]))


def bench(report: BenchReport) -> None:
    """Both sides, which must agree."""
    num_images = report.size(100, 300)
    report.describe(
        f"{num_images:,} images of {MAX_DETS} detections, {NUM_CLASSES:,} classes",
        dataset="synthetic detections",
        n_images=num_images,
    )
    content, detections = synthetic(num_images, MAX_DETS, NUM_CLASSES)
    classes = read_ov_classes(content["categories"])
    times = alternate(
        {
            "plain": lambda: plain_ap(content, classes, detections),
            "ours": lambda: detection_ap(content, classes, detections, "box", MAX_DETS),
        },
        report.size(1, 2),
    )
    ours, plain = detection_ap(content, classes, detections, "box", MAX_DETS), plain_ap(content, classes, detections)
    for mine, theirs in zip((ours.ap, ours.ap50), plain, strict=True):
        if not np.allclose(mine, theirs, rtol=0, atol=1e-9, equal_nan=True):
            raise RuntimeError("the sides do not compute the same AP")
    speedup = ratio(times["plain"], times["ours"])
    report.add("speedup_box", "LVIS's evaluation of boxes against a loop over classes", speedup, goal=GOAL)
