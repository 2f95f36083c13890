"""Regenerate README's results tables from results/*.json, next to the paper's numbers.

    python tools/make_results_tables.py           # rewrite the tables in README.md
    python tools/make_results_tables.py --check   # exit 1 when README.md is stale; changes nothing

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`. Each row names its data set, its input and, for
our numbers, the protocol. A number measured here meets the paper's in one row only when the row label and the data set
with its input ("ImageNet-1k val, 224 px") are the same; of several protocols under one number of the paper, the first
shows it and the others follow. What was not run here stands only in the paper's column. Records that share table, row,
data set, input and protocol (seeds) are shown as mean +- sample standard deviation. The table "speed" holds what
benches recorded (speed_table.py).
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from paper_tables import TABLES, ResultsTable
from speed_results import SPEED_TABLE
from speed_table import render_speed_table

from last_vit.results import ResultRecord, read_results

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- results:(?P<name>[\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
INPUT = re.compile(r".+?, (?:\d+ px|native)(?=,|$)")


def render_table(table: ResultsTable, records: Sequence[ResultRecord]) -> str:
    """One Markdown table: the paper's rows, each with those of ours that it is compared with, then the others of ours.

    Raises:
        ValueError: Records of one row that are not the same measurement (metrics or number of images differ).
    """
    groups: dict[tuple[str, str], list[ResultRecord]] = {}
    for record in records:
        groups.setdefault((record.row or "", record.dataset), []).append(record)
    training = ["training"] if table.has_training else []
    published = ["paper"] if table.paper else []
    numbers = [*published, *table.metrics.values(), "images", "runs"]
    header = ["model", "data set and input", *numbers, *training, "commit", "source"]
    lines = [_line(header), _line(["---:" if title in numbers else "---" for title in header])]
    for paper in table.paper:
        same = [(row, dataset) for row, dataset in groups if row == paper.row and _input(dataset) == paper.dataset]
        first, *others = same or [(paper.row, paper.dataset)]
        ours = _cells(table, groups.pop(first, []))
        lines.append(_line([*first, f"{paper.value:.1f}", *ours[:-1], _join(paper.source, ours[-1])]))
        lines.extend(_line([*key, "", *_cells(table, groups.pop(key))]) for key in others)
    lines.extend(_line([*key, *[""] * len(published), *_cells(table, group)]) for key, group in groups.items())
    return "\n".join(lines) + "\n"


def render_readme(readme: str, records: Sequence[ResultRecord]) -> str:
    """README's text with every marked table regenerated.

    Raises:
        ValueError: A marker or a record that names an unknown table, or a table with records but no marker.
    """
    marked = {match["name"] for match in MARKED.finditer(readme)}
    shown = {record.table: record.name for record in records if record.table is not None}
    for name in sorted(marked | set(shown)):
        if name not in TABLES and name != SPEED_TABLE:
            where = f"result {shown[name]}" if name in shown else "README"
            raise ValueError(f"{where} names the table {name!r}; known tables: {', '.join([*TABLES, SPEED_TABLE])}")
        if name not in marked:
            raise ValueError(
                f"result {shown[name]} belongs in the table {name!r}, which README does not have; add the lines "
                f"'<!-- results:{name} -->' and '<!-- /results -->' to it"
            )

    def regenerate(match: re.Match[str]) -> str:
        own = [record for record in records if record.table == match["name"]]
        is_speed = match["name"] == SPEED_TABLE
        return match[1] + (render_speed_table(own) if is_speed else render_table(TABLES[match["name"]], own)) + match[3]

    return MARKED.sub(regenerate, readme)


def _input(dataset: str) -> str:
    """Data set and input alone, of a text that may go on with a protocol: up to the first ", <number> px"."""
    found = INPUT.match(dataset)
    return found[0] if found else dataset


def _cells(table: ResultsTable, group: Sequence[ResultRecord]) -> list[str]:
    """Metric, images, runs, commit and source cells of one row; empty cells for no records."""
    if not group:
        return [""] * (len(table.metrics) + 4 + table.has_training)
    first = group[0]
    for record in group[1:]:
        shown = [table.metrics.keys() & each.metrics.keys() for each in (first, record)]
        if record.n_images != first.n_images or shown[0] != shown[1]:
            raise ValueError(
                f"results {first.name} and {record.name} share the row {first.row!r} on {first.dataset!r} but differ "
                f"in images ({first.n_images}, {record.n_images}) or in the table's metrics; give them different rows"
            )
    metrics = [
        _mean_std([record.metrics[key] for record in group if key in record.metrics], table.decimals.get(key, 1))
        for key in table.metrics
    ]
    commits = ", ".join(sorted({record.git_commit for record in group}))
    files = " ".join(f"[{i}](results/{record.name}.json)" for i, record in enumerate(group, start=1))
    training = ["; ".join(_training_time(record) for record in group)] if table.has_training else []
    return [*metrics, f"{first.n_images:,}", str(len(group)), *training, commits, files]


def _training_time(record: ResultRecord) -> str:
    """Seconds and device of the run that made a record; empty for an evaluation alone."""
    seconds = record.config.get("train_seconds")
    return "" if seconds is None else f"{seconds:,.0f} s, {record.device}"


def _mean_std(values: Sequence[float], decimals: int = 1) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{decimals}f}"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether README is up to date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default: this repository's")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the JSON files")
    args = parser.parse_args(argv)
    try:
        old = args.readme.read_text(encoding="utf-8")
        new = render_readme(old, read_results(args.results))
    except (OSError, ValueError) as error:
        parser.exit(2, f"make_results_tables.py: error: {error}\n")
    if args.check:
        if new != old:
            print(f"{args.readme} is stale; run: python tools/make_results_tables.py")
            return 1
        return 0
    args.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
