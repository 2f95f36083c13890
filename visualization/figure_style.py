"""The look of every figure here: colours per model, maps, one way to make a figure and to save it.

Figures are drawn without pyplot, so they need no display and leave no state behind.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers and in print. One colour per model, in the order given.
MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FOREGROUND, BACKGROUND = "#D55E00", "#0072B2"
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


def house_style() -> AbstractContextManager[None]:
    """While it lasts, what is drawn has this folder's look; titles and legends take theirs when they are made."""
    return rc_context(_STYLE)


def new_figure(
    num_rows: int, num_columns: int, width: float = 4.2, height: float = 3.0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels.

    Args:
        num_rows: Rows of panels.
        num_columns: Columns of panels.
        width: Of one panel, in inches.
        height: Of one panel, in inches.

    Returns:
        The figure, and its axes as rows of columns.
    """
    with house_style():
        figure = Figure(figsize=(width * num_columns, height * num_rows), dpi=150, layout="constrained")
        axes = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, [list(row) for row in axes]


def model_color(index: int) -> str:
    """Colour of the model at a place in the command line; colours repeat after seven."""
    return MODEL_COLORS[index % len(MODEL_COLORS)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, making its folder.

    Args:
        figure: Any.
        path: Of a format that matplotlib writes, by its ending: .png, .pdf, .svg.

    Raises:
        ValueError: An ending that matplotlib does not know; the message lists those it does.
    """
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise ValueError(f"cannot write a figure to {path}: its ending must be one of {', '.join(sorted(known))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        figure.savefig(path)


def hide_ticks(axes: Sequence[Axes]) -> None:
    """Panels that show pictures: no ticks, no frame, no grid."""
    for panel in axes:
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
        panel.set_frame_on(False)
