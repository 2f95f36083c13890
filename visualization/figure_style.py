"""The look of every figure here, one way to make and save one, and the images that figures show.

Figures are drawn without pyplot, so they need no display and leave no state behind.

Letters: M images of a figure, S the crop's side in pixels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from foreground_images import ForegroundImages
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from last_vit.preprocessing import Preprocessing

# Okabe and Ito's palette: told apart by colour-blind readers and in print. One colour per model, in the order given;
# object and background have theirs, in report/page.css too.
MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
FOREGROUND, BACKGROUND = "#E69F00", "#8E929A"
HIT, MISS, BOX = "#3ddc84", "#ff4d4d", "#ffffff"
COLORMAP = "inferno"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
}
_PANELS_PER_ROW = 3


def house_style() -> AbstractContextManager[None]:
    """While it lasts, what is drawn has this folder's look; titles and legends take theirs when they are made."""
    return rc_context(_STYLE)


def new_figure(num_rows: int, num_columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels, each `width` x `height` inches, and its axes [num_rows, num_columns]."""
    with house_style():
        figure = Figure(figsize=(width * num_columns, height * num_rows), dpi=150, layout="constrained")
        return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def model_panels(num_models: int) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per model, at most three in a row."""
    num_columns = min(num_models, _PANELS_PER_ROW)
    figure, axes = new_figure(-(-num_models // num_columns), num_columns, width=4.2, height=3.3)
    panels = list(axes.flat)
    for unused in panels[num_models:]:
        unused.set_visible(False)
    return figure, panels[:num_models]


def finish_panels(figure: Figure, panels: Sequence[Axes], label: str, headroom: float) -> None:
    """Give the panels of `model_panels` one height from 0 on, a vertical label per row, and one legend below."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top * headroom)
    for axes in panels[::_PANELS_PER_ROW]:
        axes.set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    # in as many rows as one panel's width asks for
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles) if len(panels) > 1 else 2)


def model_color(index: int) -> str:
    """Colour of the model at a place in the command line; colours repeat after six."""
    return MODEL_COLORS[index % len(MODEL_COLORS)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's ending, making its folder, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        figure.savefig(path)
    print(f"written {path}")


def hide_ticks(axes: Sequence[Axes]) -> None:
    """Panels that show pictures: no ticks, no frame, no grid."""
    for panel in axes:
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        panel.set_frame_on(False)


class ExampleImages(NamedTuple):
    """Chosen images as one model takes them."""

    inputs: Tensor  # float32 [M, 3, S, S], normalised
    foregrounds: Tensor  # uint8 [M, S, S], as `ForegroundImages` gives them
    pictures: np.ndarray  # float32 [M, S, S, 3] in [0, 1], the inputs without their normalisation


def choose_images(num_images: int, num_chosen: int | None, seed: int, flag: str) -> list[int]:
    """Indices of the images that a figure shows, ascending: the same for every model of one command.

    Without `num_chosen` 6 are shown, or all where there are fewer; more than there are is an error that names `flag`.
    """
    if num_chosen is None:
        num_chosen = min(6, num_images)
    if not 0 <= num_chosen <= num_images:
        raise ValueError(f"{flag} must be in [0, {num_images}] (images), got {num_chosen}")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:num_chosen].sort().values.tolist()


def find_image(images: ForegroundImages, shown: Sequence[int], name: str) -> int:
    """The one image to choose from whose path ends in `name`."""
    found = [index for index in shown if images.image_paths[index].match(name)]
    if len(found) != 1:
        raise ValueError(f"--only {name} must be one of the {len(shown)} images of {images.folder}, is {len(found)}")
    return found[0]


def load_examples(images: ForegroundImages, chosen: Sequence[int], preprocessing: Preprocessing) -> ExampleImages:
    """Read the chosen images, at least one; `images` have the transform of `preprocessing`."""
    samples = [images[index] for index in chosen]
    inputs = torch.stack([sample["image"] for sample in samples])
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    pictures = (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    return ExampleImages(inputs, torch.stack([sample["foreground"] for sample in samples]), pictures.numpy())


def draw_picture(axes: Axes, picture: np.ndarray, foreground: Tensor, lowest: float | None = None) -> None:
    """Show an image [S, S, 3], or a map [h, w] in colours from `lowest` on, with the outline of its objects, if any.

    `foreground` is uint8 [S, S], 1 is object; the axes are in the crop's pixels.
    """
    side = len(foreground)
    axes.imshow(picture, extent=(0, side, side, 0), cmap=COLORMAP, vmin=lowest)
    is_object = (foreground == 1).numpy()
    if is_object.any():
        for color, width in (("black", 2.2), (BOX, 1.0)):
            draw_rim(axes, is_object.astype(float), color, width)
    axes.set(xlim=(0, side), ylim=(side, 0))


def draw_rim(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    """Outline a mask [S, S] of zeros and ones in the crop's pixels, at the image's border too."""
    centres = np.arange(-1, len(mask) + 1) + 0.5
    axes.contour(centres, centres, np.pad(mask, 1), levels=[0.5], colors=color, linewidths=width)
