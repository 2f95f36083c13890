"""Regenerate the results tables of README.md and docs/ from results/*.json, next to the paper's numbers.

    python tools/make_results_tables.py           # rewrite the tables
    python tools/make_results_tables.py --check   # exit 1 when one is stale; changes nothing

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`. Each row names its data set, its input and, for
our numbers, the protocol. A number measured here meets the paper's in one row only when the row label and the data set
with its input ("ImageNet-1k val, 224 px") are the same; of several protocols under one number of the paper, the first
shows it and the others follow. What was not run here stands only in the paper's column. Records that share table, row,
data set, input and protocol are shown as mean +- sample standard deviation; labels that differ in ", seed 1" alone
are one row; of a measurement made again (same label, data, settings, weights) only the newest counts. A row's source is
the commit at which it was measured, and how many commits ago that was when the tables were made, which `--check` does
not look at. Where every data set and input is a table of its own, its name stands above.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from paper_tables import SUMMARY, TABLES, ResultsTable
from speed_ratios import SPEED_TABLE, hardware_words, read_speed_ratios

from last_vit.command_line import command
from last_vit.results import ROOT, ResultRecord, read_results

PAGES = ("README.md", "docs/results.md", "docs/speed.md")
SUMMARY_TABLE = "summary"
MARKED = re.compile(r"(<!-- results:(?P<name>[\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
INPUT = re.compile(r".+?, (?:\d+ px|native)(?=,|$)")
AGE = re.compile(r" \(\d+ ago\)")
SEED = re.compile(r", seed \d+(?=,|$)")


def render_page(page: str, records: Sequence[ResultRecord], to_results: str = "results") -> str:
    """A Markdown page with every marked table regenerated; `to_results` is the records' folder as the page links to it.

    ValueError for a marker that names an unknown table, and records of one row that are not the same measurement.
    """
    records = _newest(records)

    def regenerate(match: re.Match[str]) -> str:
        name = match["name"]
        if name == SUMMARY_TABLE:
            return match[1] + _summary(records) + match[3]
        if name not in (*TABLES, SPEED_TABLE):
            raise ValueError(f"no table is called {name!r}; known: {', '.join([*TABLES, SPEED_TABLE, SUMMARY_TABLE])}")
        shown = TABLES[name].records_of or name if name in TABLES else name
        own = [record for record in records if record.table == shown]
        if name == SPEED_TABLE:
            return match[1] + _speed(own, to_results) + match[3]
        return match[1] + render_table(TABLES[name], own, to_results) + match[3]

    return MARKED.sub(regenerate, page)


def render_table(table: ResultsTable, records: Sequence[ResultRecord], to_results: str) -> str:
    """One Markdown table: the paper's rows, each with those of ours that it is compared with, then the others of ours.

    A metric that no record has is no column.
    ValueError: Records of one row that are not the same measurement (metrics or number of images differ).
    """
    records = [_with_layers(record) for record in records]
    if not table.apart:
        return _one_table(table, records, to_results)
    inputs = sorted({record.dataset for record in records}, key=lambda text: (_place(table.apart, text), text))
    parts = []
    for each in inputs:
        own = [record for record in records if record.dataset == each]
        counted = " or ".join(f"{number:,}" for number in sorted({record.n_images for record in own}))
        parts.append(f"{each} ({counted} counted):\n\n{_one_table(table, own, to_results)}")
    return "\n".join(parts)


def _one_table(table: ResultsTable, records: Sequence[ResultRecord], to_results: str) -> str:
    groups: dict[tuple[str, str], list[ResultRecord]] = {}
    for record in records:
        groups.setdefault((_label(record), record.dataset), []).append(record)
    measured = {key for record in records for key in record.metrics} or table.metrics.keys()
    table = replace(table, metrics={key: title for key, title in table.metrics.items() if key in measured})
    published, counts = ["paper"] if table.paper else [], ["seeds"] if table.apart else ["images", "runs"]
    names = ["model"] if table.apart else ["model", "data set and input"]
    numbers = [*published, *table.metrics.values(), *counts]
    header = [*names, *numbers, "source"]
    lines = [_line(header), _line(["---:" if title in numbers else "---" for title in header])]
    empty = [""] * (len(table.metrics) + len(counts) + 1)

    def ours(key: tuple[str, str]) -> list[str]:
        group = groups.pop(key, [])
        return _cells(table, group, to_results) if group else empty

    for paper in table.paper:
        same = [(row, dataset) for row, dataset in groups if row == paper.row and _input(dataset) == paper.dataset]
        first, *others = same or [(paper.row, paper.dataset)]
        *cells, source = ours(first)
        lines.append(_line([*first, f"{paper.value:.1f}", *cells, "; ".join(filter(None, (paper.source, source)))]))
        lines.extend(_line([*key, "", *ours(key)]) for key in others)
    ordered = sorted(groups, key=lambda key: (_place(table.order, key[0]), key[0]))
    lines.extend(_line([*key[: len(names)], *[""] * len(published), *ours(key)]) for key in ordered)
    known = {key: value for record in records for key, value in record.metrics.items()}
    for label, ending in table.references.items():
        cells = [f"{known[key + ending]:.1f}" if key + ending in known else "" for key in table.metrics]
        if any(cells):
            lines.append(_line([label, *cells, *[""] * (len(counts) + 1)]))
    return "\n".join(lines) + "\n"


def _place(words: Sequence[str], text: str) -> int:
    """Of the last word that stands in a text."""
    return max((place for place, word in enumerate(words) if word in text), default=len(words))


def _newest(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Without the measurements that were made again later."""
    newest: dict[str, ResultRecord] = {}
    for record in records:
        key = repr((record.table, record.row, record.dataset, record.checkpoint_sha256, sorted(record.config.items())))
        if key not in newest or newest[key].date <= record.date:
            newest[key] = record
    return list(newest.values())


def _with_layers(record: ResultRecord) -> ResultRecord:
    """A record whose metrics are also those of its layers: "<metric>@<layer>"."""
    layers = {f"{key}@{row['layer']}": value for row in record.by_layer or () for key, value in row.items()}
    return replace(record, metrics={**record.metrics, **layers})


def _input(dataset: str) -> str:
    """Data set and input alone, of a text that may go on with a protocol: up to the first ", <number> px"."""
    found = INPUT.match(dataset)
    return found[0] if found else dataset


def _cells(table: ResultsTable, group: Sequence[ResultRecord], to_results: str) -> list[str]:
    """Metric, images, runs and source cells of one row; a source is the commits of a record, which they link to."""
    first = group[0]
    for record in group[1:]:
        shown = [table.metrics.keys() & each.metrics.keys() for each in (first, record)]
        if record.n_images != first.n_images or shown[0] != shown[1]:
            raise ValueError(
                f"results {first.name} and {record.name} share the row {first.row!r} on {first.dataset!r} but differ "
                f"in images ({first.n_images}, {record.n_images}) or in the table's metrics; give them different rows"
            )
    metrics = [_mean_std(group, key, table.decimals.get(key, 1)) for key in table.metrics]
    commits: dict[str, dict[str, None]] = {}
    for record in group:
        commits.setdefault(record.name, {})[_dated(record.git_commit)] = None
    links = ", ".join(f"[{', '.join(found)}]({to_results}/{name}.json)" for name, found in commits.items())
    return [*metrics, *([] if table.apart else [f"{first.n_images:,}"]), str(len(group)), links]


def _mean_std(group: Sequence[ResultRecord], metric: str, decimals: int = 1) -> str:
    values = [record.metrics[metric] for record in group if metric in record.metrics]
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{decimals}f}"


def _label(record: ResultRecord) -> str:
    """Of its row, which all seeds share."""
    return SEED.sub("", record.row or "")


def _summary(records: Sequence[ResultRecord]) -> str:
    """README's table: a line per task that was measured here, the paper's numbers beside ours."""
    header = ["task", "paper: CLS", "paper: LaSt", "ours: CLS", "ours: LaSt", "ours: random", "ours is"]
    lines = [_line(header), _line(["---", *["---:"] * 5, "---"])]
    for task in SUMMARY:
        own = [record for record in records if record.table == task.table and record.dataset.startswith(task.dataset)]
        ours = [_mean_std([record for record in own if _label(record) == row], task.metric) for row in task.rows]
        if any(ours):
            paper = ["" if value is None else f"{value:.1f}" for value in task.paper]
            lines.append(_line([task.words, *paper, *ours, task.ours]))
    return "\n".join(lines) + "\n"


def _speed(records: Sequence[ResultRecord], to_results: str) -> str:
    """Every ratio that a bench recorded, with its spread and its goal."""
    header = ["what", "median", "one run's rounds", "goal", "", "hardware", "commit", "source"]
    lines = [_line(header), _line(["---", "---:", "---:", "---:", *["---"] * 4])]
    for record in records:
        source = f"[{record.row}]({to_results}/{record.name}.json)"
        for each in read_speed_ratios(record):
            low, high = each.with_unit(each.low), each.with_unit(each.high)
            verdict = "" if each.goal is None else "met" if each.is_met else "**missed**"
            spread = "" if each.low == each.high else f"{low} to {high}"
            about = [each.goal_words(), verdict, hardware_words(record), _dated(record.git_commit), source]
            lines.append(_line([each.words, each.with_unit(each.median), spread, *about]))
    return "\n".join(lines) + "\n"


@cache
def _dated(commit: str) -> str:
    """A commit and how many others came after it; without them where git does not know it."""
    asked = ["git", "rev-list", "--count", f"{commit.removesuffix('-dirty')}..HEAD"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return commit if done.returncode else f"{commit} ({done.stdout.strip()} ago)"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def run(args: argparse.Namespace) -> None:
    """Make the tables anew, or say which are stale."""
    records = read_results(args.root / "results")
    pages = {args.root / name: (args.root / name).read_text(encoding="utf-8") for name in PAGES}
    marked = {match["name"] for page in pages.values() for match in MARKED.finditer(page)}
    unseen = [record.name for record in records if record.table not in marked]
    if unseen:
        raise ValueError(f"results/ holds what no table shows: {', '.join(unseen)}; remove it or add its table")
    to_results = {path: "results" if path.parent == args.root else "../results" for path in pages}
    new = {path: render_page(page, records, to_results[path]) for path, page in pages.items()}
    stale = [str(path) for path, page in pages.items() if AGE.sub("", page) != AGE.sub("", new[path])]
    if args.check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run: python tools/make_results_tables.py")
    if not args.check:
        for path, page in new.items():
            path.write_text(page, encoding="utf-8")


@command(run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md, docs/ and results/")


if __name__ == "__main__":
    main()
