"""The look of every figure here, set by importing this, and one way to make and save one.

Figures are drawn without pyplot, so they need no display and stay in no memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers and in print. One colour per model, in the order given;
# object and background have theirs, in report/page.css too.
MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
FOREGROUND, BACKGROUND = "#E69F00", "#8E929A"
COLORMAP = "inferno"
_PANELS_PER_ROW = 3

rcParams.update(
    {
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
)


def new_figure(num_rows: int, num_columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels, each `width` x `height` inches, and its axes [num_rows, num_columns]."""
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
    figure.savefig(path)
    print(f"written {path}")


def hide_ticks(axes: Sequence[Axes]) -> None:
    """Panels that show pictures: no ticks, no frame, no grid."""
    for panel in axes:
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        panel.set_frame_on(False)
