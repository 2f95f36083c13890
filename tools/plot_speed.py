"""Six ratios that benches recorded, as bars with their spread and goals: docs/speed.png.

    python tools/bench/run_all.py --record      # and --gpu: write results/bench_*.json
    python tools/plot_speed.py                  # draws docs/speed.png from them

A bar reaches from 1, "as fast as the other side", to the ratio. All other ratios stand in docs/speed.md.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from speed_ratios import SPEED_TABLE, SpeedRatio, hardware_words, read_speed_ratios

from last_vit.command_line import command
from last_vit.results import read_results

SHOWN = (
    ("bench_pooling", "speedup_k7_threads1"),
    ("bench_pooling", "speedup_k98_threads1"),
    ("bench_dino", "speedup_float32"),
    ("bench_detector", "speedup_frozen"),
    ("bench_lvis", "speedup_box"),
    ("bench_data", "over_release"),
)


def draw(args: argparse.Namespace) -> None:
    """Draw and write the picture; a record or a ratio of `SHOWN` that is not there is a ValueError."""
    records = {record.name: record for record in read_results(args.results) if record.table == SPEED_TABLE}
    ratios: list[SpeedRatio] = []
    for bench, name in SHOWN:
        found = {each.name: each for each in read_speed_ratios(records[bench])} if bench in records else {}
        if name not in found:
            raise ValueError(
                f"{args.results}/{bench}.json has no ratio {name}; run tools/bench/run_all.py {bench} --record"
            )
        ratios.append(found[name])
    figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(ratios):
        axes.barh(place, each.median - 1, 0.6, left=1, color="#4878a8")
        axes.plot([each.low, each.high], [place, place], color="#222222", linewidth=0.9)
        if each.goal is not None:
            axes.plot([each.goal] * 2, [place - 0.4, place + 0.4], color="#000000", linewidth=2)
        right = max(each.high, each.goal or 1, 1)
        axes.annotate(each.with_unit(each.median), (right, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(ratios)), [each.words for each in ratios])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks(ticks := [1, 2, 3, 5, 8], [f"{tick}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.margins(x=0.15)
    hardware = sorted({hardware_words(records[bench]) for bench, _ in SHOWN})
    axes.set_xlabel(f"times the other side; thin line: spread, mark: goal; {'; '.join(hardware)}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figure)
    print(f"written {args.figure}")


@command(draw)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records (results/)")
    parser.add_argument("--figure", type=Path, default=Path("docs/speed.png"), help="default docs/speed.png")


if __name__ == "__main__":
    main()
