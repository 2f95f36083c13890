"""Accuracy and Point-in-Box over a training run, from the log that it left or measured on its checkpoints (figure 3).

Reads `metrics.json` as detectron2's JSONWriter writes it, which is what cls_pretrain/ logs to: one JSON object a line,
of which those with "acc1" are evaluations.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from figure_style import model_color, new_figure, save_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from measured_models import measure_models, open_boxes
from point_in_box_protocol import TABLE, closing_words, measure, print_boxes

from last_vit.models import parse_model_arguments

_PANELS = {"acc1": "top-1 accuracy (%)", "point_in_box": "Point-in-Box (%)"}
_BASELINES = {"point_in_box_random": (":", "random patch"), "point_in_box_center": ("--", "image centre")}
_SHARED = "#777777"


class TrainingCurve(NamedTuple):
    """The evaluations of one run, in order."""

    name: str  # several runs may share one, such as the seeds of one recipe
    source: Path
    points: dict[int, dict[str, float]]  # by the log's iteration, from 0, or checkpoint number: what was measured, in %
    left_out: str = ""  # what was not read, in words


def run(args: argparse.Namespace) -> None:
    """The command plot_dynamics.py."""
    if bool(args.model) != (args.imagenet_root is not None):
        raise ValueError("--model SPEC@FOLDER and --imagenet-root belong together; --run needs neither")
    if args.run:
        curves = [read_training_curve(text) for text in args.run]
        notes, steps = [f"{curve.source}: left out {curve.left_out}" for curve in curves if curve.left_out], "iteration"
    else:
        curves, notes = measure_checkpoints(args)
        steps = "number of the checkpoint"
    if not curves:  # another process draws and prints
        return
    names = [curve.name for curve in curves]
    rows = {
        f"{curve.name} {'' if names.count(curve.name) == 1 else f'({curve.source}) '}{step}": row
        for curve in curves
        for step, row in curve.points.items()
    }
    print_boxes(rows)
    print("\n".join(notes), end="\n" if notes else "")
    save_figure(draw_curves(curves, steps), args.figure)


def measure_checkpoints(args: argparse.Namespace) -> tuple[list[TrainingCurve], list[str]]:
    """Every numbered checkpoint of every model's folder: the curves, in the main process, and what to say of them."""
    arguments = parse_model_arguments(args.model)
    for argument in arguments:
        if argument.checkpoint is None:
            raise ValueError(f"model {argument.name!r} has no checkpoints: give a folder of them, SPEC@FOLDER")
    folders = [numbered_checkpoints(Path(argument.checkpoint)) for argument in arguments]
    images = open_boxes(args, args.max_box_area)
    numbered = [
        replace(argument, name=f"{argument.name} {number}", checkpoint=str(path))
        for argument, (checkpoints, _) in zip(arguments, folders, strict=True)
        for number, path in checkpoints.items()
    ]
    measured = {name: metrics for name, metrics, _ in measure_models(args, TABLE, measure, images, numbered)}
    curves, notes = [], []
    for argument, (checkpoints, others) in zip(arguments, folders, strict=True) if measured else []:
        points = {number: measured[f"{argument.name} {number}"] for number in checkpoints}
        curves.append(TrainingCurve(argument.name, Path(argument.checkpoint), points))
        if others:
            notes.append(f"{argument.checkpoint}: left out {', '.join(others)} (no number)")
    return curves, [*notes, closing_words(args, images)]


def read_training_curve(text: str) -> TrainingCurve:
    """Read the log of one run, `[NAME=]FOLDER` of metrics.json; without a name it is called after its folder.

    A resumed run logs some iterations twice: the last line counts. A killed run leaves a part of a line, at the end or,
    once resumed, in front of the next one; such lines are counted and left out.
    """
    name, _, folder_text = ("", "", text) if Path(text).is_dir() else text.rpartition("=")
    folder = Path(folder_text)
    log = folder / "metrics.json"
    if not log.is_file():
        raise FileNotFoundError(f"no {log}: a run is given as [NAME=]FOLDER, the train.output_dir of cls_pretrain")
    points, num_broken = {}, 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            num_broken += 1
            continue
        if "acc1" in row:
            points[row["iteration"]] = {key: row[key] for key in row if key == "acc1" or key.startswith("point_in_box")}
    if not points:
        raise ValueError(
            f"{log} holds no evaluation: train with train.eval_period=<iterations>, or measure checkpoints with --model"
        )
    if not any("point_in_box" in metrics for metrics in points.values()):
        raise ValueError(
            f"the evaluations in {log} are without Point-in-Box: train with dataloader.test.dataset.boxes=True, or "
            f"measure the run's checkpoints with --model"
        )
    left_out = f"{num_broken} unreadable line{'s' * (num_broken > 1)} of the log" if num_broken else ""
    return TrainingCurve(name or folder.resolve().name, folder, dict(sorted(points.items())), left_out)


def numbered_checkpoints(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """The checkpoints of a run by number, ascending, and the names of those without one, such as model_final.pth.

    They are named such as model_0001563.pth (cls_pretrain: iterations) or checkpoint0020.pth (DINO: epochs).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: name the folder that holds a run's checkpoints, SPEC@FOLDER")
    found: dict[int, Path] = {}
    others = []
    for path in sorted(folder.glob("*.pth")):
        match = re.search(r"(\d+)\.pth$", path.name)
        if match is None:
            others.append(path.name)
        elif int(match[1]) in found:
            raise ValueError(f"two checkpoints of the same number: {found[int(match[1])]} and {path}")
        else:
            found[int(match[1])] = path
    if not found:
        there = ", ".join(others) or "no .pth file"
        raise FileNotFoundError(f"{folder} holds no checkpoint whose name ends in a number, but {there}")
    return dict(sorted(found.items())), others


def draw_curves(curves: Sequence[TrainingCurve], steps: str) -> Figure:
    """One panel per metric over `steps`; curves of one name share a colour and an entry of the legend."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    colors = {name: model_color(index) for index, name in enumerate(names)}
    look = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}
    panels = [key for key in _PANELS if any(key in row for curve in curves for row in curve.points.values())]
    figure, (axes,) = new_figure(1, len(panels), width=4.6, height=3.4)
    for panel, key in zip(axes, panels, strict=True):
        for curve in curves:
            points = {step: row[key] for step, row in curve.points.items() if key in row}
            panel.plot(points.keys(), points.values(), color=colors[curve.name], **look)
        panel.set(title=_PANELS[key], xlabel=steps)
        panel.set_xlim(left=0)
    _draw_baselines(axes[-1], curves, colors)
    handles = [Line2D([], [], color=color, label=name, **look) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def _draw_baselines(axes: Axes, curves: Sequence[TrainingCurve], colors: dict[str, str]) -> None:
    """One thin line per value: in the run's colour where it is of one of several runs (grids differ), else grey."""
    for key, (style, words) in _BASELINES.items():
        values = {curve.name: row[key] for curve in curves for row in curve.points.values() if key in row}
        for value in dict.fromkeys(values.values()):
            names = [name for name, other in values.items() if other == value]
            color = colors[names[0]] if len(names) == 1 < len(values) else _SHARED
            label = words if len(names) == len(values) else f"{words}, {', '.join(names)}"
            axes.axhline(value, linestyle=style, linewidth=0.9, color=color, zorder=1)
            place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(label, (0, value), (3, 2), va="bottom", fontsize=7, color=color, **place)
