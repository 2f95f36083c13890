"""Figures of a dump: AP per class, precision-recall curves, the worst misses; what inspect_detections.py runs."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_ap import ClassAP, ImageDetections, detection_ap, match_boxes
from detection_dump import Dump
from detectron2.structures import Boxes, Instances
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from ov_classes import OvClasses
from ov_json import image_record
from ov_prediction import draw_instances

from last_vit.data.image_files import load_pixels

# Okabe and Ito's colours, told apart also by the colour-blind
ALL, BASE, NOVEL = "#000000", "#0072b2", "#d55e00"
GOOD, BAD = "#009e73", "#d55e00"
_MOST_CLASSES = 100  # bars; of more only the best and worst halves are drawn


def inspect(args: Namespace) -> None:
    """Draw and write; whatever the user can mend is refused before.

    ValueError or FileNotFoundError for a threshold outside [0, 1], a kind that was not evaluated, or as `Dump`.
    """
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {args.threshold}")
    if args.image_root is not None and not args.image_root.is_dir():
        raise FileNotFoundError(f"--image-root {args.image_root} is no folder")
    dump = Dump(args.dump, args.json)
    if args.kind not in dump.about["kinds"]:
        raise ValueError(f"--kind {args.kind} was not evaluated, only {', '.join(dump.about['kinds'])}")
    detections = dump.detections()
    class_ap = detection_ap(dump.content, dump.classes, detections, args.kind, dump.about["max_dets"])
    figures = {
        "per_class": draw_per_class(class_ap, dump.classes, args.kind),
        "precision_recall": draw_curves(class_ap, dump.classes, args.kind),
    }
    if args.image_root is not None:
        figures["misses"] = draw_misses(dump, detections, args.image_root, args.threshold, args.images)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(args.output / f"{name}.png")
        print(f"written to {args.output / name}.png")


def draw_per_class(class_ap: ClassAP, classes: OvClasses, kind: str) -> Figure:
    """AP as bars and AR as ticks, best class first; base and novel classes have their own colour."""
    order = np.argsort(-class_ap.ap, kind="stable")[: int((~np.isnan(class_ap.ap)).sum())]  # NaN comes last
    title = f"{kind} AP (bar) and AR (tick), IoU 0.5 to 0.95; {len(order)} classes with objects"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order, title = np.concatenate([order[:half], order[-half:]]), f"{title}, the best and worst {half}"
    colors = [BASE if base else NOVEL for base in classes.is_base[torch.from_numpy(order)].tolist()]
    figure = Figure(figsize=(7, 1.2 + 0.15 * len(order)), dpi=150, layout="constrained")
    axes, places = figure.subplots(), np.arange(len(order))
    axes.barh(places, 100 * class_ap.ap[order], color=colors, height=0.75)
    axes.scatter(100 * class_ap.ar[order], places, marker="|", color=colors, s=30)
    axes.set_yticks(places, [classes.names[label] for label in order.tolist()], fontsize=7)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, None), xlabel="percent")
    axes.set_title(title, fontsize=9)
    axes.legend(handles=[Patch(color=BASE, label="base"), Patch(color=NOVEL, label="novel")], loc="lower right")
    return figure


def draw_curves(class_ap: ClassAP, classes: OvClasses, kind: str) -> Figure:
    """Precision over recall at IoU 0.5 and 0.75, means over the classes with objects of each group."""
    has_objects, is_base = ~np.isnan(class_ap.ap), classes.is_base.numpy()
    groups = {
        "all": (ALL, has_objects),
        "base": (BASE, has_objects & is_base),
        "novel": (NOVEL, has_objects & ~is_base),
    }
    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    for place, (axes, iou) in enumerate(zip(figure.subplots(1, 2, sharey=True), (0.5, 0.75), strict=True)):
        for name, (color, mask) in groups.items():
            if mask.any():
                curve = 100 * class_ap.curves[mask, place].mean(axis=0)
                axes.plot(
                    np.linspace(0, 100, 101), curve, color=color, label=f"{name} ({mask.sum()}): {curve.mean():.1f}"
                )
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="recall, percent")
        axes.set_title(f"{kind}, IoU {iou}; the area is AP", fontsize=9)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("precision, percent")
    return figure


def draw_misses(
    dump: Dump, detections: Sequence[ImageDetections], image_root: Path, threshold: float, num_images: int
) -> Figure:
    """The images of the lowest recall, and among these of most missed objects, worst first: objects and detections.

    ValueError for a set without objects; FileNotFoundError for an image that is not there.
    """
    sure = [image.scores >= threshold for image in detections]
    kept = [
        replace(image, boxes_xyxy=image.boxes_xyxy[own], scores=image.scores[own], labels=image.labels[own], masks=None)
        for image, own in zip(detections, sure, strict=True)
    ]
    objects_of, found_of = defaultdict(list), defaultdict(list)
    for of_image, entries in zip(
        (objects_of, found_of), match_boxes(dump.content, dump.classes, kept, dump.about["max_dets"]), strict=True
    ):
        for entry in entries:
            of_image[entry["image_id"]].append(entry)
    if not objects_of:
        raise ValueError(f"{dump.about['json']} has no objects that could be missed")

    def badness(image_id: int) -> tuple[float, int]:
        missed = sum("match" not in entry for entry in objects_of[image_id])
        return missed / len(objects_of[image_id]), missed

    worst = sorted(objects_of, key=badness, reverse=True)[:num_images]
    entries = {entry["id"]: entry for entry in dump.content["images"]}
    figure = Figure(figsize=(12, 4.6 * len(worst)), dpi=100, layout="constrained")
    for (left, right), image_id in zip(figure.subplots(len(worst), 2, squeeze=False), worst, strict=True):
        pixels = load_pixels(image_record(entries[image_id], image_root, dump.classes.is_lvis)["file_name"])
        missed, wrong = (sum("match" not in each for each in side[image_id]) for side in (objects_of, found_of))
        left.set_title(f"image {image_id}: {missed} of {len(objects_of[image_id])} objects missed", fontsize=10)
        right.set_title(f"{len(found_of[image_id])} detections of {threshold} or more, {wrong} wrong", fontsize=10)
        for axes, side in ((left, objects_of), (right, found_of)):
            axes.imshow(_picture(pixels, side[image_id], dump.classes).permute(1, 2, 0))
            axes.axis("off")
    return figure


def _picture(pixels: np.ndarray, entries: Sequence[Mapping[str, Any]], classes: OvClasses) -> torch.Tensor:
    """The image with boxes: green where they are matched, red where not; the best are on top."""
    entries = sorted(entries, key=lambda entry: -entry.get("score", 0.0))
    instances = Instances(pixels.shape[:2])
    boxes = torch.tensor([entry["shape"] for entry in entries]).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    names = [classes.names[classes.label_of[entry["category_id"]]] for entry in entries]
    scores = [f" {entry['score']:.2f}" if "score" in entry else "" for entry in entries]
    colors = [GOOD if "match" in entry else BAD for entry in entries]
    return draw_instances(pixels, instances, [n + score for n, score in zip(names, scores, strict=True)], colors)
