"""Drawing of visualize_norms.py: one row per model with its norms by layer, at the output, and against patch score.

Norms are on log axes, counts on log colours, because what is looked for is a percent of the patches at several times
the norm of the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from example_images import ExampleImages, draw_picture
from figure_style import BACKGROUND, COLORMAP, FOREGROUND, hide_ticks, house_style, model_color, new_figure
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_HIDDEN = 0.001  # share of the patches that may lie left of the panels
_BINS_SHOWN = 90
_COUNTS = f"{COLORMAP}_r"  # white is none, dark is many


@dataclass(frozen=True)
class NormView:
    """What is drawn of one model over a data set.

    Attributes:
        name: Of the model.
        stats: As `PatchNorms.compute` gives them, of the output before the final norm.
        edges: [bins + 1], of all norm histograms.
        layers: [L, bins], patches after each block.
        normed: [bins], patches after the final norm; None for a host without one.
        split: Foreground's and background's patches of the output, two [bins]; None where not annotated.
        joint: norm edges [X + 1], score edges [Y + 1], patches [X, Y].
    """

    name: str
    stats: Mapping[str, float]
    edges: np.ndarray
    layers: np.ndarray
    normed: np.ndarray | None
    split: tuple[np.ndarray, np.ndarray] | None
    joint: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ExampleView:
    """What is drawn of one model on chosen images.

    Attributes:
        name: Of the model.
        images: As the model takes them.
        scores: [M, h, w].
        norms: [M, h, w].
        captions: One line per image for below its norms.
        cutoff: Patches at or above it are marked.
    """

    name: str
    images: ExampleImages
    scores: np.ndarray
    norms: np.ndarray
    captions: Sequence[str]
    cutoff: float


def draw_norms(views: Sequence[NormView]) -> Figure:
    """One row per model: norms after each block, at the output with the cut-off, and against patch score."""
    figure, axes = new_figure(len(views), 3, width=4.4, height=3.3)
    low, high = _common_range(views)
    with house_style():
        for index, (view, row) in enumerate(zip(views, axes, strict=True)):
            _draw_layers(figure, row[0], view)
            _draw_output(row[1], view, model_color(index))
            _draw_joint(figure, row[2], view)
            for panel in row[:2]:
                panel.set(xlim=(low, high), xlabel="L2 norm of a patch token")
                _plain_ticks(panel.xaxis, high / low)
            _plain_ticks(row[2].yaxis, row[2].get_ylim()[1] / row[2].get_ylim()[0])
    return figure


def draw_examples(views: Sequence[ExampleView]) -> Figure:
    """One row per image: the image, and per model its patch score and its norms before the final norm."""
    num_rows = len(views[0].scores)
    figure, axes = new_figure(num_rows, 1 + 2 * len(views), width=1.75, height=1.95)
    for row, panels in enumerate(axes):
        hide_ticks(panels)
        draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
        for index, view in enumerate(views):
            score, norm = panels[1 + 2 * index : 3 + 2 * index]
            _draw_map(score, view.scores[row])
            score.set_xlabel(f"{view.scores[row].min():.2f} to {view.scores[row].max():.2f}", fontsize=7)
            _draw_map(norm, view.norms[row])
            _mark_outliers(norm, view.norms[row] >= view.cutoff)
            norm.set_xlabel(view.captions[row], fontsize=7)
    axes[0][0].set_title("image", fontsize=8)
    for index, view in enumerate(views):
        axes[0][1 + 2 * index].set_title(f"{view.name}\npatch score", fontsize=8)
        axes[0][2 + 2 * index].set_title(f"{view.name}\nnorm", fontsize=8)
    return figure


def _draw_layers(figure: Figure, axes: Axes, view: NormView) -> None:
    rows = [*view.layers] if view.normed is None else [*view.layers, view.normed]
    edges, rows = _shown(view.edges, rows)
    shares = np.stack([row / row.sum() for row in rows]) * 100
    num_blocks = len(view.layers)
    places = [float(block) for block in range(1, num_blocks + 1)]
    step = -(-num_blocks // 12)
    names = {block: str(block) for block in range(num_blocks, 0, -step)}
    if view.normed is not None:
        places.append(num_blocks + 1.5)  # set apart: it is no block
        names[places[-1]] = "normed"
    elif num_blocks == 1:
        names = {1: "last map"}
    lowest = max(float(shares[shares > 0].min()), 1e-3)
    for place, share in zip(places, shares, strict=True):
        mesh = axes.pcolormesh(
            edges, [place - 0.5, place + 0.5], share[None], cmap=_COUNTS, norm=LogNorm(lowest, 100), rasterized=True
        )
        median = np.sqrt(edges[:-1] * edges[1:])[np.searchsorted(share.cumsum(), 50)]
        axes.plot([median], [place], "|", color="white", markersize=5, markeredgewidth=1.4)
    _count_bar(figure, axes, mesh, "% of the layer's patches")
    axes.set(
        xscale="log",
        ylabel="after block" if "last map" not in names.values() else "",
        title=f"{view.name}: norms by layer",
    )
    axes.set(ylim=(0.3, max(places[-1] + 0.7, 3)))
    axes.set_yticks(list(names), list(names.values()))
    axes.grid(visible=False, axis="y")


def _draw_output(axes: Axes, view: NormView, color: str) -> None:
    groups = [("all patches", view.layers[-1], color)]
    if view.split is not None:
        groups = [("foreground", view.split[0], FOREGROUND), ("background", view.split[1], BACKGROUND)]
    edges, rows = _shown(view.edges, [counts for _, counts, _ in groups])
    for (label, _, group_color), counts in zip(groups, rows, strict=True):
        share = 100 * counts / counts.sum()
        axes.stairs(share, edges, color=group_color, fill=True, alpha=0.18)
        axes.stairs(share, edges, color=group_color, linewidth=1.4, label=label)
    stats = view.stats
    axes.axvline(
        stats["cutoff"], ymax=0.88, color="black", linestyle="--", linewidth=1.1, label=f"cut-off {stats['cutoff']:.3g}"
    )
    axes.set(xscale="log", yscale="log", ylabel=f"% of {'each group' if view.split else 'all patches'}")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)  # room for the legend
    axes.yaxis.set_major_formatter(_plain())
    answer = "yes" if stats["high_norm"] else "no"
    axes.set_title(f"output, high norm: {answer} ({stats['outlier_share']:.2f} % outliers)")
    axes.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.4)


def _draw_joint(figure: Figure, axes: Axes, view: NormView) -> None:
    norm_edges, score_edges, counts = view.joint
    norms, scores = _occupied(counts.sum(1), _HIDDEN), _occupied(counts.sum(0))
    counts = counts[norms, scores]
    mesh = axes.pcolormesh(
        score_edges[scores.start : scores.stop + 1],
        norm_edges[norms.start : norms.stop + 1],
        np.ma.masked_equal(counts, 0),
        cmap=_COUNTS,
        norm=LogNorm(1, max(2, counts.max())),
        rasterized=True,
    )
    _count_bar(figure, axes, mesh, "patches")
    parts = [
        f"r = {view.stats[key]:.2f} {words}"
        for key, words in (("correlation", "per image"), ("correlation_pooled", "pooled"))
        if key in view.stats
    ]
    axes.set(yscale="log", xlabel="patch score", ylabel="norm")
    axes.set_title("; ".join(parts) or "nothing varies, no correlation")


def _draw_map(axes: Axes, values: np.ndarray) -> None:
    height, width = values.shape
    axes.imshow(values, cmap=COLORMAP, extent=(0, width, height, 0), aspect=width / height)


def _mark_outliers(axes: Axes, is_outlier: np.ndarray) -> None:
    for y, x in np.argwhere(is_outlier):
        axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, edgecolor="#56B4E9", linewidth=1.2))


def _common_range(views: Sequence[NormView]) -> tuple[float, float]:
    """Smallest and largest norm of any layer of any model, so that the models' panels compare; a little wider.

    The lowest 0.1 % of a model's patches may lie outside: a ConvNet's dead cells have norm 0, decades below the rest.
    """
    low, high = np.inf, 0.0
    for view in views:
        rows = [view.layers.sum(0)] + ([view.normed] if view.normed is not None else [])
        inside = _occupied(sum(rows), _HIDDEN)
        low, high = min(low, view.edges[inside.start]), max(high, view.edges[inside.stop], view.stats["cutoff"])
    return low / 1.15, high * 1.15


def _shown(edges: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut histograms of fine bins to where any has counts, in at most `_BINS_SHOWN` bins."""
    inside = _occupied(sum(rows))
    step = max(1, -(-(inside.stop - inside.start) // _BINS_SHOWN))
    start = inside.start - inside.start % step
    stop = min(-(-inside.stop // step) * step, len(edges) - 1)
    places = [*range(start, stop, step), stop]
    return edges[places], [np.add.reduceat(row[:stop], places[:-1]) for row in rows]


def _occupied(counts: np.ndarray, hidden: float = 0.0) -> slice:
    """From the first to the last bin with counts; the lowest bins that hold up to a share `hidden` may be left out."""
    found = np.flatnonzero(counts)
    first = np.flatnonzero(np.cumsum(counts) > hidden * counts.sum())[0]
    return slice(int(first), int(found[-1]) + 1)


def _plain() -> FuncFormatter:
    """0.01, 1, 50 and not powers of ten."""
    return FuncFormatter(lambda value, _: f"{value:g}")


def _plain_ticks(axis: Axis, ratio: float) -> None:
    """1, 2, 5, 10, ... on a log axis over a factor of `ratio`; decades only where there are many."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 200 else (1,)))
    axis.set_major_formatter(_plain())
    axis.set_minor_formatter(NullFormatter())


def _count_bar(figure: Figure, axes: Axes, mesh: QuadMesh, label: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, label=label, pad=0.02)
    bar.ax.yaxis.set_major_formatter(_plain())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
