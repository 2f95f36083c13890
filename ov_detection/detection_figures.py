"""Figures of a dump: AP per class, precision-recall curves, the worst misses; what inspect_detections.py runs."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
MATCHED, UNMATCHED = "#009e73", "#d55e00"
_MOST_CLASSES = 100  # bars


def inspect(args: Namespace) -> None:
    """Draw and write.

    ValueError or FileNotFoundError for a threshold outside [0, 1], a kind that was not evaluated, or as `Dump`.
    """
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {args.threshold}")
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
    """AP as bars and AR as ticks, best class first; of more than 100 classes the best and the worst 50."""
    order = np.argsort(-class_ap.ap, kind="stable")[: int((~np.isnan(class_ap.ap)).sum())]  # NaN comes last
    title = f"{kind} AP (bar) and AR (tick), IoU 0.5 to 0.95; {len(order)} classes with objects"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order, title = np.concatenate([order[:half], order[-half:]]), f"{title}, the best and worst {half}"
    colors = [BASE if base else NOVEL for base in classes.is_base[torch.from_numpy(order)].tolist()]
    figure = Figure(figsize=(7, 1.2 + 0.15 * len(order)), dpi=150, layout="constrained")
    axes, places = figure.subplots(), np.arange(len(order))
    axes.barh(places, 100 * class_ap.ap[order], color=colors, height=0.75)
    axes.scatter(100 * class_ap.ar[order], places, marker="|", color=ALL, s=30)
    axes.set_yticks(places, [classes.names[label] for label in order.tolist()], fontsize=7)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, None), xlabel="percent")
    axes.set_title(title, fontsize=9)
    axes.legend(handles=[Patch(color=BASE, label="base"), Patch(color=NOVEL, label="novel")], loc="lower right")
    return figure


def draw_curves(class_ap: ClassAP, classes: OvClasses, kind: str) -> Figure:
    """Precision over recall at IoU 0.5 and 0.75, means over the classes with objects of each group."""
    has_objects, is_base = ~np.isnan(class_ap.ap), classes.is_base.numpy()
    groups = [("base", BASE, has_objects & is_base), ("novel", NOVEL, has_objects & ~is_base)]
    groups.append(("all", ALL, has_objects))
    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    for place, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        for name, color, mask in groups:
            if mask.any():
                curve = 100 * class_ap.curves[mask, place].mean(axis=0)
                label = f"{name}, {mask.sum()} classes: {curve.mean():.1f}"
                axes.plot(curve, color=color, label=label, linestyle="--" if name == "all" else "-")
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="recall, percent", ylabel="" if place else "precision, percent")
        axes.set_title(f"{kind}, IoU {(0.5, 0.75)[place]}; the area is AP", fontsize=9)
        axes.legend(fontsize=8)
    return figure


def draw_misses(
    dump: Dump, detections: Sequence[ImageDetections], image_root: Path, threshold: float, num_images: int
) -> Figure:
    """The images of the lowest recall, and among these of most missed objects, worst first: objects and detections.

    ValueError for a set without objects; FileNotFoundError for an image that is not there.
    """
    kept = [image.select(image.scores >= threshold) for image in detections]
    objects_of, found_of = defaultdict(list), defaultdict(list)
    both = match_boxes(dump.content, dump.classes, kept, dump.about["max_dets"])
    for of_image, entries in zip((objects_of, found_of), both, strict=True):
        for entry in entries:
            of_image[entry["image_id"]].append(entry)
    if not objects_of:
        raise ValueError(f"{dump.about['json']} has no objects that could be missed")
    missed = {number: sum("match" not in each for each in entries) for number, entries in objects_of.items()}
    worst = sorted(missed, key=lambda number: (-missed[number] / len(objects_of[number]), -missed[number]))
    worst, entries = worst[:num_images], {entry["id"]: entry for entry in dump.content["images"]}
    figure = Figure(figsize=(12, 4.6 * len(worst)), dpi=100, layout="constrained")
    for (left, right), number in zip(figure.subplots(len(worst), 2, squeeze=False), worst, strict=True):
        pixels = load_pixels(image_record(entries[number], image_root, dump.classes.is_lvis)["file_name"])
        wrong = sum("match" not in each for each in found_of[number])
        left.set_title(f"image {number}: {missed[number]} of {len(objects_of[number])} objects missed", fontsize=10)
        right.set_title(f"{len(found_of[number])} detections of {threshold} or more, {wrong} wrong", fontsize=10)
        for axes, side in ((left, objects_of), (right, found_of)):
            axes.imshow(_picture(pixels, side[number], dump.classes).permute(1, 2, 0))
            axes.axis("off")
    return figure


def _picture(pixels: np.ndarray, entries: Sequence[Mapping[str, Any]], classes: OvClasses) -> torch.Tensor:
    """The image with boxes, named and coloured by whether they are matched; the best are on top."""
    entries = sorted(entries, key=lambda entry: -entry.get("score", 0.0))
    boxes = torch.tensor([entry["shape"] for entry in entries]).reshape(-1, 4)
    boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    names = [classes.names[classes.label_of[entry["category_id"]]] for entry in entries]
    scores = [f" {entry['score']:.2f}" if "score" in entry else "" for entry in entries]
    colors = [MATCHED if "match" in entry else UNMATCHED for entry in entries]
    texts = [name + score for name, score in zip(names, scores, strict=True)]
    return draw_instances(pixels, Instances(pixels.shape[:2], pred_boxes=boxes), texts, colors)
