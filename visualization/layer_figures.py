"""Lazy aggregation layer by layer: one picture with a line per model, and the numbers as tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from figure_style import model_color, new_figure
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from last_vit.evaluation import print_metrics

_PANELS = {
    "point_in_box": "Point-in-Box (%)",
    "point_in_box_small": "Point-in-Box, small objects (%)",
    "auroc": "AUROC of the score (%)",
    "high_norm_share": "patches of high norm (%)",
    "high_norm_inside": "of these on the object (%)",
    "point_in_box_norm": "Point-in-Box of the norm (%)",
}
_COLUMNS = {
    "point_in_box": "PiB",
    "point_in_box_small": "small",
    "auroc": "AUROC",
    "point_in_box_cls": "PiB, CLS",
    "point_in_box_small_cls": "small, CLS",
    "auroc_cls": "AUROC, CLS",
    "point_in_box_norm": "PiB, norm",
    "high_norm_share": "high norm %",
    "high_norm_inside": "of them in box %",
    "high_norm_chance": "by chance %",
}
_ENDS = {
    "acc1": "top-1",
    "point_in_box": "PiB",
    "point_in_box_small": "small",
    "auroc": "AUROC",
    "corloc": "CorLoc",
    "jaccard": "Jaccard",
    "votes_inside": "votes inside %",
}


class LayerView(NamedTuple):
    """What is drawn and printed of one model, as `LayerStatistics.compute` gives it."""

    name: str
    metrics: Mapping[str, float]
    by_layer: Sequence[Mapping[str, float | str]]


def draw_layers(views: Sequence[LayerView]) -> Figure:
    """A panel per measure, layers from left to right, one colour per model; dotted, a class token's that is not read.

    The final norm stands apart: it is no block. References are those of the first model's images.
    """
    figure, axes = new_figure(2, 3, width=4.0, height=2.9)
    for panel, (measure, title) in zip(axes.flat, _PANELS.items(), strict=True):
        for index, view in enumerate(views):
            for kind, look in (("", {"label": view.name, "marker": "o"}), ("_cls", {"linestyle": ":"})):
                key, places = measure + kind, zip(_places(view), view.by_layer, strict=True)
                points = [(place, row[key]) for place, row in places if key in row]
                panel.plot(*zip(*points, strict=True), color=model_color(index), markersize=3.5, **look)
        for style, (label, value) in zip(("--", "-."), _references(measure, views[0].metrics), strict=False):
            panel.axhline(value, color="0.45", linestyle=style, linewidth=1.0, label=label, zorder=0)
        deepest = max(views, key=lambda view: len(view.by_layer))
        names, places = [str(row["layer"]) for row in deepest.by_layer], _places(deepest)
        panel.set_xticks(places, [name.replace("norm", "final\nnorm") for name in names])
        panel.set(title=title, xlabel="after block", xlim=(0.5, places[-1] + 0.5))
        if measure != "auroc":
            panel.set_ylim(bottom=0)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    if any("point_in_box_cls" in view.metrics for view in views):
        handles.append(Line2D([], [], color="0.45", linestyle=":", label="class token that is not read"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _places(view: LayerView) -> list[float]:
    """Where each layer stands from left to right."""
    return [place + 0.5 * (row["layer"] == "norm") for place, row in enumerate(view.by_layer, start=1)]


def _references(measure: str, metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """What a random patch and the image's centre score, where that is defined."""
    if measure in ("auroc", "high_norm_share"):
        return [("random patch", 50.0)] if measure == "auroc" else []
    area = measure if measure == "point_in_box_small" else "point_in_box"
    lines = {"random patch": f"{area}_random"} | ({"image centre": f"{area}_center"} if measure == area else {})
    return [(label, metrics[key]) for label, key in lines.items() if key in metrics]


def print_layers(views: Sequence[LayerView]) -> None:
    """A table of every model's layers, and one of what ranks patches at the end, beside what a patch at random does."""
    for view in views:
        rows = []
        for row in view.by_layer:
            name = f"block {row['layer']}".replace("block norm", "final norm")
            rows.append(([name], {key: row[key] for key in _COLUMNS if key in row}))
        rows += [([what], _ending(view, f"_{what}", _COLUMNS)) for what in ("random", "center", "max")]
        print(f"\n{view.name}")
        print_metrics(["after"], _COLUMNS, rows, ".1f")
    ends = [(view, key.removeprefix("auroc")) for view in views for key in view.metrics if key.startswith("auroc")]
    ends += [(views[0]._replace(name="any"), what) for what in ("_random", "_center", "_everything")]
    rows = [
        ([view.name, (what or "_score")[1:].replace("_", ", K = ")], _ending(view, what, _ENDS))
        for view, what in ends
        if not what.startswith("_small")
    ]
    print()
    print_metrics(["model", "ranked by"], _ENDS, [row for row in rows if row[1]], ".1f")


def _ending(view: LayerView, what: str, columns: Mapping[str, str]) -> dict[str, float]:
    """The metrics of what ranks patches, or of a reference."""
    names = {key: f"{key}{what}".replace("inside_votes", "inside") for key in columns}
    return {key: view.metrics[name] for key, name in names.items() if name in view.metrics}
