"""Norms of patch tokens over a data set: by layer, at the output, against patch score (paper figures 6, 8, 9, 13, 14).

Norms are on log axes, counts on log colours, because what is looked for is a percent of the patches at several times
the norm of the rest.

Letters: L layers, X and Y bins of norm and score.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import figure_style as style
import map_figures as figures
import numpy as np
import torch
from foreground_images import patch_foreground
from layer_tokens import count_layers, layer_tokens
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from measured_models import Measurement, Subject, measure_models
from patch_norms import PatchNorms, merge_bins, token_norms

from last_vit.dense import dense_batches
from last_vit.evaluation import print_metrics
from last_vit.patch_scores import patch_score

_HIDDEN = 0.001  # share of the patches that may lie left of the panels
_BINS_SHOWN = 90
_DENSITY = f"{style.COLORMAP}_r"  # white is none, dark is many
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 0.01, 1, 50 and not powers of ten
_COUNTS = ("num_images", "num_patches", "num_outside", "num_constant_maps", "num_split_images")
_NOTES = {
    "num_outside": "norms outside the histogram's range",
    "num_constant_maps": "images without correlation, their map is constant",
}
_COLUMNS = {
    "norm_median": "median",
    "norm_max": "max",
    "cutoff": "cut-off",
    "outlier_share": "outliers %",
    "high_norm": "high norm",
    "correlation": "r in image",
    "correlation_pooled": "r pooled",
    "norm_ratio": "fg / bg",
    "foreground_higher": "fg higher %",
    "outliers_in_background": "outliers in bg %",
    "background_share": "bg patches %",
}


class NormView(NamedTuple):
    """What is drawn of one model over a data set; arrays are counts of patches."""

    name: str
    stats: Mapping[str, float]  # of `PatchNorms`, of the output before the final norm
    edges: np.ndarray  # [bins + 1], of all norm histograms
    layers: np.ndarray  # [L, bins], after each block
    normed: np.ndarray | None  # [bins], after the final norm; None for a host without one
    split: tuple[np.ndarray, np.ndarray] | None  # foreground's and background's [bins]; None where not annotated
    joint: tuple[np.ndarray, np.ndarray, np.ndarray]  # norm edges [X + 1], score edges [Y + 1], counts [X, Y]


def run(args: argparse.Namespace) -> None:
    """The command visualize_norms.py."""
    shown = measure_models(args, "norms", measure)
    if not shown:  # another process draws and prints
        return
    views, examples = zip(*shown, strict=True)
    print_metrics(["model"], _COLUMNS, [([view.name], view.stats) for view in views], ".4g")
    for name, stats in ((view.name, view.stats) for view in views):
        line = f"{name}: {int(stats['num_images'])} images, {int(stats['num_patches'])} patches"
        print(line + "".join(f", {stats[key]:g} {words}" for key, words in _NOTES.items() if stats.get(key)))
    style.save_figure(draw_norms(views), args.figure)
    if args.examples != 0:
        path = args.figure.with_stem(f"{args.figure.stem}_examples")
        style.save_figure(figures.draw_maps(examples), path)


def measure(subject: Subject) -> tuple[tuple[NormView, figures.ModelMaps | None], list[Measurement]]:
    """One pass of a model over the images, and the chosen ones again for the second picture."""
    args, argument, trained, images, device = subject
    chosen = figures.choose_images(len(images), args.examples, args.seed, "--examples")
    num_layers, has_final_norm = count_layers(trained.model)
    layers = [PatchNorms() for _ in range(num_layers - 1)] + [PatchNorms(args.cutoff)]
    last, normed = layers[-1], PatchNorms()
    for tokens, batch in dense_batches(trained.model, subject.batches(), device, layer_tokens):
        output = tokens.output
        score = patch_score(output.patch_tokens, output.global_token)
        foreground, known = patch_foreground(batch["foreground"], output.grid_hw)
        for norms, patch_tokens in zip(layers[:-1], tokens.layers[:-1], strict=True):
            norms.update(token_norms(patch_tokens))
        last.update(token_norms(tokens.layers[-1]), score, foreground if images.has_foreground else None, known)
        normed.update(token_norms(output.patch_tokens))
    try:
        stats = last.compute()
    except ValueError as error:
        raise ValueError(f"{error} (--cutoff)") from error
    split = tuple(part.numpy() for part in last.split_histogram())
    view = NormView(
        argument.name,
        stats,
        edges=last.histogram()[0].numpy(),
        layers=np.stack([layer.histogram()[1].numpy() for layer in layers]),
        normed=normed.histogram()[1].numpy() if has_final_norm else None,
        split=split if "norm_ratio" in stats else None,
        joint=tuple(part.numpy() for part in last.correlation.joint_histogram()),
    )
    examples = None
    if chosen:
        shown = figures.read_images(images, chosen, trained.preprocessing)
        maps = figures.read_examples(trained.model, shown, trained.selection(), device)
        examples = figures.ModelMaps(argument.name, shown, norm_columns(maps, shown, stats["cutoff"]))
    metrics = {key: value for key, value in stats.items() if key not in _COUNTS}
    protocol = "cut-off fitted" if args.cutoff is None else f"cut-off {args.cutoff:g}"
    config = {**{key: stats[key] for key in stats if key in _COUNTS}, "num_layers": num_layers}
    return (view, examples), [Measurement(metrics, int(stats["num_images"]), protocol, config)]


def norm_columns(maps: figures.PatchMaps, examples: figures.ExampleImages, cutoff: float) -> list[figures.Column]:
    """Scores and norms with their ranges, patches from the cut-off on framed."""
    (height, width), side = maps.grid_hw, len(examples.pictures[0])
    captions = []
    for row, front, known in zip(maps.norms, *patch_foreground(examples.foregrounds, maps.grid_hw), strict=True):
        caption = f"{row.min():.3g} to {row.max():.3g}"
        if (front & known).any() and (~front & known).any():
            caption += f", fg / bg {row[front & known].mean() / row[~front & known].mean().clamp_min(1e-12):.2f}"
        captions.append(caption)
    norms = maps.norms.unflatten(1, maps.grid_hw)

    def frame(axes: Axes, image: int) -> None:
        patch = np.array([side / width, side / height])
        for y, x in (norms[image] >= cutoff).nonzero().tolist():
            corner, size = patch * (x + 0.06, y + 0.06), 0.88 * patch
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#56B4E9", linewidth=1.2))

    return [
        figures.score_column(maps, examples),
        figures.Column("norm", norms, captions, draw_on=frame),
    ]


def draw_norms(views: Sequence[NormView]) -> Figure:
    """One row per model: norms after each block, at the output with the cut-off, and against patch score."""
    figure, axes = style.new_figure(len(views), 3, width=4.4, height=3.3)
    low, high = _common_range(views)
    for index, (view, row) in enumerate(zip(views, axes, strict=True)):
        _draw_layers(figure, row[0], view)
        _draw_output(row[1], view, style.model_color(index))
        _draw_joint(figure, row[2], view)
        for panel in row[:2]:
            panel.set(xlim=(low, high), xlabel="L2 norm of a patch token")
            _plain_ticks(panel.xaxis, high / low)
        _plain_ticks(row[2].yaxis, row[2].get_ylim()[1] / row[2].get_ylim()[0])
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
            edges, [place - 0.5, place + 0.5], share[None], cmap=_DENSITY, norm=LogNorm(lowest, 100), rasterized=True
        )
        median = np.sqrt(edges[:-1] * edges[1:])[np.searchsorted(share.cumsum(), 50)]
        axes.plot([median], [place], "|", color="white", markersize=5, markeredgewidth=1.4)
    _count_bar(figure, axes, mesh, "% of the layer's patches")
    label = "after block" if "last map" not in names.values() else ""
    axes.set(xscale="log", ylabel=label, title=f"{view.name}: norms by layer", ylim=(0.3, max(places[-1] + 0.7, 3)))
    axes.set_yticks(list(names), list(names.values()))
    axes.grid(visible=False, axis="y")


def _draw_output(axes: Axes, view: NormView, color: str) -> None:
    groups = [("all patches", view.layers[-1], color)]
    if view.split is not None:
        groups = [("foreground", view.split[0], style.FOREGROUND), ("background", view.split[1], style.BACKGROUND)]
    edges, rows = _shown(view.edges, [counts for _, counts, _ in groups])
    for (label, _, group_color), counts in zip(groups, rows, strict=True):
        share = 100 * counts / counts.sum()
        axes.stairs(share, edges, color=group_color, fill=True, alpha=0.18)
        axes.stairs(share, edges, color=group_color, linewidth=1.4, label=label)
    cutoff = view.stats["cutoff"]
    axes.axvline(cutoff, ymax=0.88, color="black", linestyle="--", linewidth=1.1, label=f"cut-off {cutoff:.3g}")
    axes.set(xscale="log", yscale="log", ylabel=f"% of {'each group' if view.split else 'all patches'}")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)  # room for the legend
    axes.yaxis.set_major_formatter(_PLAIN)
    answer = "yes" if view.stats["high_norm"] else "no"
    axes.set_title(f"output, high norm: {answer} ({view.stats['outlier_share']:.2f} % outliers)")
    axes.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.4)


def _draw_joint(figure: Figure, axes: Axes, view: NormView) -> None:
    norm_edges, score_edges, counts = view.joint
    norms, scores = _occupied(counts.sum(1), _HIDDEN), _occupied(counts.sum(0))
    counts = counts[norms, scores]
    mesh = axes.pcolormesh(
        score_edges[scores.start : scores.stop + 1],
        norm_edges[norms.start : norms.stop + 1],
        np.ma.masked_equal(counts, 0),
        cmap=_DENSITY,
        norm=LogNorm(1, max(2, counts.max())),
        rasterized=True,
    )
    _count_bar(figure, axes, mesh, "patches")
    names = {"correlation": "per image", "correlation_pooled": "pooled"}
    parts = [f"r = {view.stats[key]:.2f} {words}" for key, words in names.items() if key in view.stats]
    axes.set(yscale="log", xlabel="patch score", ylabel="norm")
    axes.set_title("; ".join(parts) or "nothing varies, no correlation")


def _common_range(views: Sequence[NormView]) -> tuple[float, float]:
    """Smallest and largest norm of any layer of any model, so that the models' panels compare; a little wider.

    The lowest 0.1 % of a model's patches may lie outside: a ConvNet's dead cells have norm 0, decades below the rest.
    """
    low, high = np.inf, 0.0
    for view in views:
        inside = _occupied(view.layers.sum(0) + (0 if view.normed is None else view.normed), _HIDDEN)
        low, high = min(low, view.edges[inside.start]), max(high, view.edges[inside.stop], view.stats["cutoff"])
    return low / 1.15, high * 1.15


def _shown(edges: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut histograms of fine bins to where any has counts, in at most `_BINS_SHOWN` bins."""
    places = merge_bins(torch.from_numpy(sum(rows)), _BINS_SHOWN).numpy()
    return edges[places], [np.add.reduceat(row[: places[-1]], places[:-1]) for row in rows]


def _occupied(counts: np.ndarray, hidden: float = 0.0) -> slice:
    """From the first to the last bin with counts; the lowest bins that hold up to a share `hidden` may be left out."""
    found = np.flatnonzero(counts)
    first = np.flatnonzero(np.cumsum(counts) > hidden * counts.sum())[0]
    return slice(int(first), int(found[-1]) + 1)


def _plain_ticks(axis: Axis, ratio: float) -> None:
    """1, 2, 5, 10, ... on a log axis over a factor of `ratio`; decades only where there are many."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 200 else (1,)))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_formatter(NullFormatter())


def _count_bar(figure: Figure, axes: Axes, mesh: QuadMesh, label: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, label=label, pad=0.02)
    bar.ax.yaxis.set_major_formatter(_PLAIN)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
