"""What benches recorded, in one picture: every ratio that has a goal, with its spread and the goal's mark.

    python tools/bench/run_all.py --record      # and --gpu: write results/bench_*.json
    python tools/bench/plot_speed.py          # draws docs/speed.png from them

A bar reaches from 1, "as fast as the other side", to the ratio; its line is the spread over one run's rounds. Shares in
percent and ratios without a goal stand in README's table only. Below the bars are the pooling's curves over B, N, D, K.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import add_figure_flag
from pooling_curves import draw_curves, middle_words, read_curves

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from speed_results import SpeedRatio

    from last_vit.results import ResultRecord

    Row = tuple[str, str, dict[str, SpeedRatio]]

_INCHES_PER_BAR, _BAR, _HEADING, _GAP, _WIDTH, _CURVES = 0.17, 0.8, 1.3, 0.35, 9.5, 2.8
_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10000)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    parser = command_parser("plot_speed.py", __doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records (results/)")
    add_figure_flag(parser, "docs/speed.png")
    run_command_line(parser, _run, argv)


def _run(args: argparse.Namespace) -> None:
    from speed_results import SPEED_TABLE

    from last_vit.results import read_results

    records = [record for record in read_results(args.results) if record.table == SPEED_TABLE]
    rows = goal_rows(records)
    if not rows:
        raise ValueError(
            f"no bench in {args.results} recorded a ratio with a goal; run python tools/bench/run_all.py --record"
        )
    curves = {side_of(record): record for record in records if read_curves(record)}
    show_speed(rows, curves, args.figure)
    print(f"{len(rows)} ratios of {len({bench for bench, _, _ in rows})} benches; written {args.figure}")


def goal_rows(records: Sequence["ResultRecord"]) -> list["Row"]:
    """(bench, words, ratio by side) of every ratio with a goal, benches in alphabetical order."""
    from speed_results import read_speed_ratios

    rows: dict[tuple[str, str], Row] = {}
    for record in sorted(records, key=lambda record: record.row or ""):
        for ratio in read_speed_ratios(record):
            if ratio.unit == "x" and ratio.goal is not None:
                row = rows.setdefault((record.row or "", ratio.name), (record.row or "", ratio.words, {}))
                row[2][side_of(record)] = ratio
    return list(rows.values())


def side_of(record: "ResultRecord") -> str:
    """Where a record was measured: "CPU" or "GPU"."""
    from speed_results import is_on_cpu

    return "CPU" if is_on_cpu(record) else "GPU"


def show_speed(rows: Sequence["Row"], curves: Mapping[str, "ResultRecord"], path: Path) -> None:
    """Draw and write the picture.

    Args:
        rows: Of `goal_rows`.
        curves: Records with curves, by side.
        path: As `save_figure`'s.
    """
    from figure_style import BACKGROUND, FOREGROUND, house_style, save_figure
    from matplotlib.figure import Figure

    colors = {"CPU": BACKGROUND, "GPU": FOREGROUND}
    tops = _places(rows)
    heights = [1.0 + _INCHES_PER_BAR * (tops[-1] + len(rows[-1][2])), *[_CURVES] * bool(curves)]
    with house_style():
        figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=150, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw(parts[0].subplots(), rows, tops, colors)
        if curves:
            words = "; ".join(f"{side}: {middle_words(record)}" for side, record in curves.items())
            parts[1].suptitle(f"Pooling, one size changed at a time ({words})", fontsize=9)
            draw_curves(parts[1].subplots(1, 4, sharey=True), curves, colors)
    save_figure(figure, path)


def _places(rows: Sequence["Row"]) -> list[float]:
    """Upper edge of each row's bars, in bars from the top, with room for a heading above each bench."""
    tops, end = [], -_GAP
    for place, (bench, _, ratios) in enumerate(rows):
        is_first = not place or rows[place - 1][0] != bench
        tops.append(end + _GAP + is_first * (_HEADING + _GAP))
        end = tops[-1] + len(ratios)
    return tops


def _draw(panel: "Axes", rows: Sequence["Row"], tops: Sequence[float], colors: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.transforms import blended_transform_factory

    across = blended_transform_factory(panel.transAxes, panel.transData)
    shown = [side for side in colors if any(side in ratios for _, _, ratios in rows)]
    panel.set_xscale("log")
    for place, ((bench, _, ratios), top) in enumerate(zip(rows, tops, strict=True)):
        if not place or rows[place - 1][0] != bench:
            heading = {"ha": "right", "va": "center", "weight": "bold", "fontsize": 8.5}
            panel.text(-0.01, top - _HEADING / 2 - _GAP / 2, f"{bench}.py", transform=across, **heading)
        for y, side in enumerate([side for side in colors if side in ratios], start=1):
            _draw_bar(panel, ratios[side], top + y - 0.5, colors[side])
    panel.axvline(1, color="#222222", linewidth=0.8, zorder=3)
    middles = [top + len(ratios) / 2 for top, (_, _, ratios) in zip(tops, rows, strict=True)]
    panel.set_yticks(middles, [words for _, words, _ in rows], fontsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(visible=False, axis="y")
    panel.set_ylim(tops[-1] + len(rows[-1][2]) + _GAP, 0)
    panel.margins(x=0.12)
    panel.set_xlabel("times the other side (log scale)")
    low, high = panel.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    panel.set_xticks(ticks, [f"{tick:,g}x" for tick in ticks])
    panel.set_xticks([], minor=True)
    entries = [
        *(Patch(color=colors[side], label=side) for side in shown),
        Line2D([], [], color="#000000", linewidth=2, marker="", label="goal"),
        Line2D([], [], color="#222222", linewidth=0.9, label="spread over one run's rounds"),
    ]
    panel.legend(handles=entries, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(entries))


def _draw_bar(panel: "Axes", ratio: "SpeedRatio", y: float, color: str) -> None:
    panel.barh(y, ratio.median - 1, _BAR, left=1, color=color, zorder=2)
    panel.plot([ratio.low, ratio.high], [y, y], color="#222222", linewidth=0.9, zorder=3)
    panel.plot([ratio.goal] * 2, [y - 0.5, y + 0.5], color="#000000", linewidth=2.0, zorder=4)
    bound = f" (at most {ratio.goal:g}x)" if ratio.is_limit else ""
    panel.annotate(
        ratio.with_unit(ratio.median) + (bound if ratio.is_met else f"{bound} missed"),
        (max(ratio.high, ratio.goal, 1.0), y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color="#222222" if ratio.is_met else "#c00000",
        weight="normal" if ratio.is_met else "bold",
    )


if __name__ == "__main__":
    main()
