"""The picture of visualize_token_selection.py: maps of how often each position is selected."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from figure_style import hide_ticks, house_style, new_figure
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

_COLORMAP = "PuOr_r"  # two-sided: below uniform purple, above it orange


@dataclass(frozen=True)
class SelectionView:
    """What is drawn, printed and written of one model and one K.

    Attributes:
        name: Of the model.
        k: Patches kept per channel.
        frequency: float64 [h, w], share of all votes, sums to 1.
        metrics: As `VoteStatistics.compute`.
    """

    name: str
    k: int
    frequency: Tensor
    metrics: dict[str, float]


def draw_rows(rows: Sequence[Sequence[SelectionView]]) -> Figure:
    """Rows of models, columns of K; one scale per row, in units of the uniform share, which is white."""
    figure, axes = new_figure(len(rows), len(rows[0]), width=2.6, height=3.0)
    figure.get_layout_engine().set(h_pad=0.1)
    with house_style():
        for views, panels in zip(rows, axes, strict=True):
            hide_ticks(panels)
            maps = [view.frequency * view.frequency.numel() for view in views]
            # to twice the uniform share at least, so that small differences look small
            highest = max(2.0, *(float(values.max()) for values in maps))
            scale = TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest)
            for view, values, panel in zip(views, maps, panels, strict=True):
                shown = panel.imshow(values.numpy(), cmap=_COLORMAP, norm=scale, interpolation="nearest")
                title = "\n".join(textwrap.wrap(view.name, 20))  # a narrow panel; longer names would be cut off
                panel.set_title(f"{title}\nK = {view.k} of {values.numel()}")
                panel.set_xlabel(_caption(view.metrics, values), fontsize=8)
                panel.set_frame_on(True)
                for spine in panel.spines.values():
                    spine.set(visible=True, color="0.7", linewidth=0.8)
            bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.02, ticks=[0, 1, highest])
            bar.ax.set_yticklabels(["0", "uniform", f"{highest:.3g} x"], fontsize=8)
            bar.ax.axhline(1, color="black", linewidth=1)
    return figure


def _caption(metrics: dict[str, float], values: Tensor) -> str:
    spread = f"{float(values.min()):.2f} to {float(values.max()):.2f} x uniform"
    if "votes_inside" not in metrics:
        return spread
    return f"{spread}\ninside {metrics['votes_inside']:.1f} %, uniform {metrics['votes_inside_uniform']:.1f} %"
