"""Drawing of the paper's figure 2: score distributions (a) and accuracy under masking (b), one panel per model.

The smoothing of the drawn densities is the released plot's, kernel 1 2 3 2 1 over 120 bins; numbers never come from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from figure_style import BACKGROUND, FOREGROUND, house_style, new_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NUM_BINS = 120
_KERNEL = np.array([1, 2, 3, 2, 1]) / 9
_PANELS_PER_ROW = 3
_CURVES = {
    "top": ("best-scoring patches masked", FOREGROUND, "o"),
    "bottom": ("worst-scoring patches masked", BACKGROUND, "s"),
    "random": ("random patches masked", "#777777", "^"),
}


@dataclass(frozen=True)
class ScoreView:
    """What is drawn of one model's scores.

    Attributes:
        name: Of the model.
        stats: As `ScoreDistribution.compute` gives them.
        edges: [bins + 1], of the densities.
        foreground: [bins].
        background: [bins].
    """

    name: str
    stats: Mapping[str, float]
    edges: np.ndarray
    foreground: np.ndarray
    background: np.ndarray


@dataclass(frozen=True)
class MaskingView:
    """What is drawn of one model's accuracy.

    Attributes:
        name: Of the model.
        stats: As `MaskedAccuracy.compute` gives them.
        percents: Of the patches that were masked, ascending.
        num_classes: Among which a guess would choose.
    """

    name: str
    stats: Mapping[str, float]
    percents: Sequence[int]
    num_classes: int


def draw_distributions(views: Sequence[ScoreView]) -> Figure:
    """Densities of the normalised score of object and background patches, with the numbers; all on the same axes."""
    figure, panels = _model_panels(len(views))
    with house_style():
        for view, axes in zip(views, panels, strict=True):
            for label, density, color in (
                ("background patches", view.background, BACKGROUND),
                ("object patches", view.foreground, FOREGROUND),
            ):
                height = smooth(density)
                axes.stairs(height, view.edges, color=color, fill=True, alpha=0.2)
                axes.stairs(height, view.edges, color=color, linewidth=1.4, label=label)
            axes.set(title=view.name, xlim=(0, 1), xlabel="patch score, min-max per image")
            axes.text(0.03, 0.98, _numbers(view.stats), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.4)
        _share_height(panels, 1.35)  # room for the numbers
        _finish(figure, panels, "density")
    return figure


def draw_masking(views: Sequence[MaskingView]) -> Figure:
    """Top-1 accuracy against the share of masked patches, three curves per model; all on the same axes."""
    figure, panels = _model_panels(len(views))
    with house_style():
        for view, axes in zip(views, panels, strict=True):
            for curve, (label, color, marker) in _CURVES.items():
                accuracies = [view.stats["top1"], *(view.stats[f"top1_{curve}_{percent}"] for percent in view.percents)]
                axes.plot(
                    [0, *view.percents],
                    accuracies,
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=1.6,
                    label=label,
                )
            axes.axhline(100 / view.num_classes, color="black", linestyle=":", linewidth=1.0, label="chance")
            axes.set(title=view.name, xlim=(-2, 100), xlabel="masked patches (%)")
            axes.set_xticks(range(0, 101, 20))
        _share_height(panels, 1.05)
        _finish(figure, panels, "top-1 (%)")
    return figure


def smooth(density: np.ndarray) -> np.ndarray:
    """The released plot's smoothing, mirrored at both ends so that nothing is lost: [bins] -> [bins], of equal sum."""
    return np.convolve(np.pad(density, len(_KERNEL) // 2, mode="symmetric"), _KERNEL, mode="valid")


def _numbers(stats: Mapping[str, float]) -> str:
    shares = " / ".join(f"{stats[f'background_top_{percent}']:.1f}" for percent in (1, 5, 10, 50))
    return (
        f"AUROC {stats['auroc']:.1f} %\nbackground among the top 1 / 5 / 10 / 50 % and all:\n"
        f"{shares} and {stats['background_share']:.1f} %"
    )


def _model_panels(num_models: int) -> tuple[Figure, list[Axes]]:
    num_columns = min(num_models, _PANELS_PER_ROW)
    figure, rows = new_figure(-(-num_models // num_columns), num_columns, width=4.2, height=3.3)
    panels = [axes for row in rows for axes in row]
    for unused in panels[num_models:]:
        unused.set_visible(False)
    return figure, panels[:num_models]


def _share_height(panels: Sequence[Axes], headroom: float) -> None:
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top * headroom)


def _finish(figure: Figure, panels: Sequence[Axes], label: str) -> None:
    """Name the vertical axis of each row once, and all curves once below the panels."""
    for axes in panels[::_PANELS_PER_ROW]:
        axes.set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    # in as many rows as one panel's width asks for
    num_columns = len(handles) if len(panels) > 1 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns)
