"""Pictures of a segmentation: the image, the ground truth if there is one, the prediction; colours and a legend.

A class has the same colour in every picture of its data set: VOC20 and VOC21 have their official ones, the other sets
the same in the order of their classes. The legend names the classes of the picture, largest
first, each with its IoU in this image, or without ground truth its share of it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from seg_sets import SegmentationSet, resize_short_side
from seg_settings import IGNORED, SegmentationSetting
from zero_shot_segmenter import ZeroShotSegmenter

from last_vit.data.voc import voc_colors
from last_vit.results import result_name

MAX_LEGEND = 18
_VOID, _OPACITY = 255, 0.6
_COLUMNS, _PANEL_WIDTH, _MAX_ASPECT = 6, 4.0, 1.5


def draw_overlays(
    folder: Path,
    number: int,
    model_name: str,
    setting: SegmentationSetting,
    images: SegmentationSet,
    segmenter: ZeroShotSegmenter,
) -> Iterator[Path]:
    """Write up to `number` pictures, evenly spread over the set, and yield them; each goes through the model again."""
    folder.mkdir(parents=True, exist_ok=True)
    number, colors = min(number, len(images)), palette(len(images.names), setting.has_background)
    for index in (i * len(images) // number for i in range(number)):
        sample = images[index]
        resized = resize_short_side(sample["image"], setting.short_side)
        label = sample["label"].numpy().astype(np.int64)
        prediction = segmenter([resized], [label.shape])[0].cpu().numpy()
        path = folder / f"{result_name(f'{model_name}_{setting.name}_' + sample['name'])}.png"
        titles, pixels = [sample["name"], "ground truth", model_name], sample["image"].permute(1, 2, 0).numpy()
        draw_overlay(titles, pixels, label, prediction, images.names, colors).savefig(path)
        yield path


def draw_overlay(
    titles: Sequence[str],
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    names: Sequence[str],
    palette: np.ndarray,
) -> Figure:
    """A picture of three panels, of two without a label.

    Image and palette are uint8 [H, W, 3] and [C, 3], label (a class or 255) and prediction integer [H, W].
    """
    height, width = prediction.shape
    if label is None:
        painted, shown = [prediction], [(index, f"{100 * share:.0f} %") for index, share in class_shares(prediction)]
    else:
        found = classes_and_iou(label, prediction, len(names))
        painted, shown = [label, prediction], [(index, f"IoU {100 * iou:.0f}") for index, iou in found]
    num_rows = -(-(min(len(shown), MAX_LEGEND) + 2) // _COLUMNS)
    panel_height = _PANEL_WIDTH * min(height / width, _MAX_ASPECT)
    panels = [image, *(paint(image, each, palette) for each in painted)]
    size = (len(panels) * _PANEL_WIDTH, panel_height + 0.5 + 0.2 * num_rows)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    for axes, panel, title in zip(figure.subplots(1, len(panels)), panels, titles, strict=True):
        axes.imshow(panel, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
    grey = np.full((1, len(names), 3), 128, dtype=np.uint8)
    colors = paint(grey, np.arange(len(names))[None], palette)[0] / 255  # as they look on an image
    handles = [_entry(colors[index], f"{names[index]}, {size}") for index, size in shown[:MAX_LEGEND]]
    if len(shown) > MAX_LEGEND:
        handles.append(Patch(facecolor="none", label=f"and {len(shown) - MAX_LEGEND} smaller"))
    if label is not None and (label == IGNORED).any():
        handles.append(_entry("white", "does not count"))
    figure.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS, fontsize=8, frameon=False)
    return figure


def palette(num_classes: int, has_background: bool = False) -> np.ndarray:
    """A colour per class: uint8 [C, 3], RGB, all different; black is the background's, and without one no class's."""
    first = 0 if has_background else 1
    return voc_colors()[first : first + num_classes]


def paint(image: np.ndarray, label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image's brightness under the colours of its labels, white where ignored: uint8 [H, W, 3]."""
    table = np.full((IGNORED + 1, 3), _VOID)
    table[: len(palette)] = palette
    grey = 76 + 0.7 * image.mean(axis=2, keepdims=True)  # dark images keep their colours
    return ((1 - _OPACITY) * grey + _OPACITY * table[label]).astype(np.uint8)


def class_shares(prediction: np.ndarray) -> list[tuple[int, float]]:
    """Classes of a prediction and the share of the image that each takes, in (0, 1]; the largest first."""
    size = np.bincount(prediction.ravel())
    return [(int(index), float(size[index] / prediction.size)) for index in np.argsort(-size) if size[index]]


def classes_and_iou(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
    """Classes that occur in an image, in truth or prediction, and their IoU there in [0, 1]; the largest first."""
    is_known = label != IGNORED
    truth, guess = (np.bincount(each[is_known], minlength=num_classes) for each in (label, prediction))
    both = np.bincount(label[is_known & (label == prediction)], minlength=num_classes)
    size = np.maximum(truth, guess)
    order = [int(index) for index in np.argsort(-size, kind="stable") if size[index]]
    return [(index, float(both[index] / (truth[index] + guess[index] - both[index]))) for index in order]


def _entry(color: object, text: str) -> Patch:
    return Patch(facecolor=color, edgecolor="#555555", linewidth=0.5, label=text)
