"""Sheets of what object discovery found: hits above, misses below, each with mask, predicted box and objects.

Drawn without pyplot, so no display is needed and no state is left behind. Images are chosen by a seed among the hits
and among the misses of each method; the chosen ones go through the model once more, in float32, for their masks.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from corloc import MIN_IOU
from discover_boxes import feature_reader
from discovery_images import DiscoveryImages, pad_to_patch
from discovery_methods import FoundBox
from discovery_output import MethodResult
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import nn

from last_vit.data.image_files import load_rgb
from last_vit.models import ModelArgument
from last_vit.results import result_name

# Okabe and Ito's palette, told apart by colour-blind readers; objects white with a dark edge, seen on anything
HIT, MISS, OBJECT, EDGE = "#56B4E9", "#E69F00", "#ffffff", "#202020"
_COLUMNS, _PANEL, _DIMMED = 4, 2.4, 0.35


def draw_sheets(
    args: argparse.Namespace,
    argument: ModelArgument,
    model: nn.Module,
    images: DiscoveryImages,
    results: Sequence[MethodResult],
    patch_size: int,
) -> Iterator[Path]:
    """Write one picture per method into `args.pictures`.

    Args:
        args: With `pictures`, `num_pictures` and `seed`.
        argument: Whose name the sheets bear.
        model: On its device.
        images: As the model takes them.
        results: One per method, of all images.
        patch_size: In pixels.

    Yields:
        The written files.
    """
    args.pictures.mkdir(parents=True, exist_ok=True)
    for result in results:
        hits, misses = choose_images(result.best_iou, args.num_pictures, args.seed)
        figure = draw_sheet(model, images, result, hits, misses, patch_size)
        figure.suptitle(
            f"{argument.name}: {result.method.name} ({result.method.protocol})\n"
            f"CorLoc {result.metrics['corloc']:.1f} % of {len(images)} images",
            fontsize=10,
        )
        path = args.pictures / f"{result_name(f'{argument.name}_{result.method.name}')}.png"
        figure.savefig(path)
        yield path


def choose_images(best_iou: dict[int, float], number: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of hits and misses, half and half; where one kind is short, the other fills up.

    Args:
        best_iou: Image's index -> IoU of its box.
        number: At least 1; of both together.
        seed: Of the choice, which depends on nothing else.
    """
    drawn = sorted(best_iou)
    random.Random(seed).shuffle(drawn)  # noqa: S311 (no secret)
    hits = [index for index in drawn if best_iou[index] >= MIN_IOU]
    misses = [index for index in drawn if best_iou[index] < MIN_IOU]
    num_hits = min(len(hits), max((number + 1) // 2, number - len(misses)))
    return sorted(hits[:num_hits]), sorted(misses[: number - num_hits])


def draw_sheet(
    model: nn.Module,
    images: DiscoveryImages,
    result: MethodResult,
    hits: Sequence[int],
    misses: Sequence[int],
    patch_size: int,
) -> Figure:
    """The chosen images of one method: rows of hits, then rows of misses."""
    rows = [chosen[first : first + _COLUMNS] for chosen in (hits, misses) for first in range(0, len(chosen), _COLUMNS)]
    figure = Figure(figsize=(_PANEL * _COLUMNS, 0.85 * _PANEL * len(rows) + 0.9), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for panels, row in zip(axes, rows, strict=True):
        for panel in panels:
            panel.set_axis_off()
        for panel, index in zip(panels, row, strict=False):
            _draw_image(panel, model, images, result, index, patch_size)
    figure.legend(
        handles=[
            Patch(facecolor="none", edgecolor=HIT, linewidth=2, label=f"predicted, IoU >= {MIN_IOU}"),
            Patch(facecolor="none", edgecolor=MISS, linewidth=2, label="predicted, less"),
            Patch(facecolor="none", edgecolor="#888888", linewidth=1.2, label="annotated objects (white)"),
            Patch(facecolor="#555555", edgecolor="none", label="dimmed: outside the mask"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_image(
    panel: Axes, model: nn.Module, images: DiscoveryImages, result: MethodResult, index: int, patch_size: int
) -> None:
    sample = images[index]
    height, width = sample["image_hw"]
    found = _find_again(model, sample, result, patch_size)
    picture = np.asarray(load_rgb(images.objects.images[index].path), dtype=np.float32) / 255
    mask = found.patches.mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[:height, :width]
    panel.imshow(np.where(mask[..., None], picture, _DIMMED * picture))
    for box in sample["objects_xyxy"].tolist():
        _draw_box(panel, box, EDGE, 2.4)
        _draw_box(panel, box, OBJECT, 1.2)
    iou = result.best_iou[index]
    _draw_box(panel, result.boxes[sample["name"]], EDGE, 3.6)
    _draw_box(panel, result.boxes[sample["name"]], HIT if iou >= MIN_IOU else MISS, 2.2)
    panel.set(xlim=(-3, width + 3), ylim=(height + 3, -3))  # a box on the border stays visible
    kind = "hit" if iou >= MIN_IOU else "miss" if len(sample["labels"]) else "no object,"
    panel.set_title(f"{kind}, IoU {iou:.2f}".replace(",,", ","), fontsize=8)


def _find_again(model: nn.Module, sample: dict, result: MethodResult, patch_size: int) -> FoundBox:
    device = next(model.parameters()).device
    image = pad_to_patch(sample["image"], patch_size)[None].to(device)
    with torch.inference_mode():
        features = feature_reader([result.method])(model, image)
    return result.method.boxes(features, [sample["image_hw"]], patch_size)[0]


def _draw_box(panel: Axes, box: Sequence[float], color: str, width: float) -> None:
    x1, y1, x2, y2 = box
    # imshow puts pixel centres on whole numbers: pixel x covers x - 0.5 to x + 0.5
    panel.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width))
