r"""Accuracy and Point-in-Box over training, several runs in one picture (paper Sec. 4.2, figure 3).

    python visualization/plot_dynamics.py --run CLS=output/vitb16_cls --run LaSt=output/vitb16_last
    python visualization/plot_dynamics.py --imagenet-root /path/to/imagenet \
        --model CLS=cls_pretrain/configs/vitb16_in1k.py@output/vitb16_cls --model DINO=dino:vit_small/16@output/dino

--run reads the evaluations that a cls_pretrain run logs (train.eval_period, dataloader.test.dataset.boxes=True): top-1
over all validation images, Point-in-Box as the run's own `evaluation` options say. Runs of one NAME, such as the seeds
of a recipe, share a colour. --model SPEC@FOLDER measures instead every checkpoint of a folder whose name ends in a
number, on the single-object images only, as point_in_box_table.py does, and writes one record each to results/. The two
protocols differ, so one picture takes one of them. Thin lines are what a random patch (dotted) and the image's centre
(dashed) would score. Runs of different batch sizes are drawn over their iterations all the same.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import add_figure_flag, add_imagenet_flags, add_loading_flags, add_model_flags
from point_in_box_protocol import (
    add_protocol_flags,
    left_out_words,
    open_imagenet,
    protocol_words,
)
from point_in_box_table import measure_model, table_lines
from training_curve import TrainingCurve, numbered_checkpoints, read_training_curve

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {"acc1": "top-1 accuracy (%)", "point_in_box": "Point-in-Box (%)"}
_BASELINES = {"point_in_box_random": (":", "random patch"), "point_in_box_center": ("--", "image centre")}
_SHARED = "#777777"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("plot_dynamics.py", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", action="append", metavar="[NAME=]FOLDER", help="output folder of a cls_pretrain run; once per run"
    )
    add_figure_flag(parser, "results/dynamics.png")
    measured = parser.add_argument_group("checkpoints that are measured here, in place of --run")
    add_model_flags(measured, required=False)
    add_imagenet_flags(measured, source)
    measured.add_argument("--dataset-name", help="data set in the results; default: from --imagenet-root")
    measured.add_argument("--skip-broken", action="store_true", help="leave out and count images that are unreadable")
    add_protocol_flags(measured)
    add_loading_flags(measured)
    parser.set_defaults(output="dynamics", table=False)  # of the records of `measure_model`
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    if bool(args.model) != (args.imagenet_root is not None):
        raise ValueError("--model SPEC@FOLDER and --imagenet-root belong together; --run needs neither")
    if args.run:
        curves = [read_training_curve(text) for text in args.run]
        notes, steps = [f"{curve.source}: left out {curve.left_out}" for curve in curves if curve.left_out], "iteration"
    else:
        curves, notes = _measure(args)
        steps = "number of the checkpoint"
    if not curves:  # another process draws and prints
        return
    show_curves(curves, args.figure, steps)
    print("\n".join([*table_lines(_rows(curves)), *notes, f"written {args.figure}"]))


def _measure(args: argparse.Namespace) -> tuple[list[TrainingCurve], list[str]]:
    """Every numbered checkpoint of every model's folder; the curves, in the main process, and what to say of them."""
    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    for argument in arguments:
        if argument.checkpoint is None:
            raise ValueError(f"model {argument.name!r} has no checkpoints: give a folder of them, SPEC@FOLDER")
    folders = [numbered_checkpoints(Path(argument.checkpoint)) for argument in arguments]
    images = open_imagenet(args)
    args.dataset_name = images.name
    curves = []
    with process_group(args.device) as device:
        for argument, (checkpoints, others) in zip(arguments, folders, strict=True):
            points = {
                number: measure_model(
                    replace(argument, name=f"{argument.name} {number}", checkpoint=str(path)), args, images, device
                )
                for number, path in checkpoints.items()
            }
            curves.append(TrainingCurve(argument.name, Path(argument.checkpoint), points, ", ".join(others)))
        notes = [f"{curve.source}: left out {curve.left_out} (no number)" for curve in curves if curve.left_out]
        protocol = f"{images.name}, {protocol_words(args, None)}; percent; left out: {left_out_words(images)}"
        return (curves if is_main_process() else []), [*notes, protocol]


def show_curves(curves: Sequence[TrainingCurve], path: Path, steps: str) -> None:
    """Draw the picture.

    Args:
        curves: One per run; those of one name share a colour and an entry of the legend.
        path: Picture to write.
        steps: What the horizontal axis counts.
    """
    from figure_style import house_style, model_color, new_figure, save_figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(curve.name for curve in curves))
    colors = {name: model_color(index) for index, name in enumerate(names)}
    look = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}
    panels = [key for key in _PANELS if any(key in row for curve in curves for row in curve.points.values())]
    figure, (axes,) = new_figure(1, len(panels), width=4.6, height=3.4)
    with house_style():
        for panel, key in zip(axes, panels, strict=True):
            for curve in curves:
                points = {step: row[key] for step, row in curve.points.items() if key in row}
                panel.plot(points.keys(), points.values(), color=colors[curve.name], **look)
            panel.set(title=_PANELS[key], xlabel=steps)
            panel.set_xlim(left=0)
        _draw_baselines(axes[-1], curves, colors)
        handles = [Line2D([], [], color=color, label=name, **look) for name, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    save_figure(figure, path)


def _draw_baselines(axes: "Axes", curves: Sequence[TrainingCurve], colors: dict[str, str]) -> None:
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


def _rows(curves: Sequence[TrainingCurve]) -> dict[str, dict[str, float]]:
    """The rows of the printed table; runs of one name are told apart by their folders."""
    names = [curve.name for curve in curves]
    return {
        f"{curve.name} {'' if names.count(curve.name) == 1 else f'({curve.source}) '}{step}": row
        for curve in curves
        for step, row in curve.points.items()
    }


if __name__ == "__main__":
    main()
