"""What every evaluation does around its measurement: models one by one, images behind a progress bar, table, record."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from last_vit.data.loaders import build_test_loader
from last_vit.data.transforms import EvalTransform
from last_vit.models import ModelArgument, TrainedModel, load_trained_model
from last_vit.preprocessing import Preprocessing
from last_vit.results import RESULTS_DIR, ResultRecord, make_record, record_name, write_records
from last_vit.runtime import is_main_process, progress, select_device

OUTPUT_DIR = Path("output")


def eval_transform(preprocessing: Preprocessing) -> EvalTransform:
    """From an image to what a model takes."""
    prep = preprocessing
    return EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)


def load(
    name: str, file: str | Path | None = None, device: str = "cpu", **pooling: Any
) -> tuple[nn.Module, EvalTransform]:
    """A released LaSt model in one line, in eval mode, and the transform from a PIL image to its input [3, H, W].

        model, transform = last_vit.load("vitb16_in1k_last")
        logits = model(transform(image)[None])

    `name` is one of `last_vit.weights.WEIGHTS`, of which docs/hosts.md says what is known, `file` a local copy; without
    one the file is downloaded once, into torch.hub's cache (`find_released`). `device` is as in
    `select_device`; `pool`, `top_k` and `variant` take the place of what is published.
    """
    trained = load_trained_model(f"last_vit:{name}", file, **pooling)
    return trained.model.to(select_device(device)), eval_transform(trained.preprocessing)


def open_loader(
    dataset: Dataset,
    title: str,
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterable[Any]:
    """Batches of this process's share of the images, every image in exactly one process, behind a progress bar."""
    loader: DataLoader = build_test_loader(dataset, batch_size, num_workers, collate=collate)
    return progress(loader, title)


def token_words(global_token: str, trained: TrainedModel) -> str:
    """The token as records name it: "trained token", or "last K=1 release token" for a model pooled otherwise."""
    if global_token != "last" or trained.pooling["pool"] == "last":  # noqa: S105 (no password)
        return f"{global_token} token"
    selection = trained.selection()
    return f"last K={selection.top_k} {selection.variant} token"


def pooling_words(pooling: Mapping[str, Any], source: str) -> str:
    """How a model is pooled and why, in words: "pool=last, top_k=7, variant=release (recorded in the checkpoint)"."""
    known = ", ".join(f"{key}={value}" for key, value in pooling.items() if value is not None)
    return f"{known} ({source})"


def say_left_out(skipped: Mapping[str, int]) -> None:
    """Print how many images do not count, by reason; nothing when all do."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)
    if left_out and is_main_process():
        print(f"left out: {left_out}")


def folder_name(path: Path) -> str:
    """What results call a folder of images that has no name of its own: its last two parts, "coco/val2017"."""
    return "/".join(path.expanduser().resolve().parts[1:][-2:])


def print_table(cells: Sequence[Sequence[str]]) -> None:
    """Print lines of equally many cells in columns, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))


def print_metrics(
    titles: Sequence[str],
    columns: Mapping[str, str],
    rows: Sequence[tuple[Sequence[str], Mapping[str, float]]],
    digits: str = ".2f",
) -> None:
    """`print_table` of metrics in columns, key -> title, behind the names of each row.

    What no row has is no column, what a row lacks is "-"; "high_norm" is yes or no.
    """
    keys = [key for key in columns if any(key in metrics for _, metrics in rows)]
    cells = [[*titles, *(columns[key] for key in keys)]]
    for names, metrics in rows:
        shown = {key: f"{value:{',' if isinstance(value, int) else digits}}" for key, value in metrics.items()}
        if "high_norm" in metrics:
            shown["high_norm"] = "yes" if metrics["high_norm"] else "no"
        cells.append([*names, *(shown.get(key, "-") for key in keys)])
    print_table(cells)


def describe_model(argument: ModelArgument, trained: TrainedModel) -> dict[str, Any]:
    """A model as a record's config holds it."""
    return {
        "model": argument.spec,
        "checkpoint": argument.checkpoint,
        "random_seed": argument.seed,
        "pooling": trained.pooling,
        "pooling_source": trained.pooling_source,
        "resize": trained.preprocessing.resize,
        "crop": trained.preprocessing.crop,
    }


def write_record(args: argparse.Namespace, table: str, label: str, metrics: Mapping[str, float], **about: Any) -> Path:
    """`write_run` of one measurement: its label, its metrics, and the other arguments of `make_record`."""
    return write_run(args, table, [label_record(args, table, label, metrics, **about)])


def label_record(
    args: argparse.Namespace, table: str, label: str, metrics: Mapping[str, float], **about: Any
) -> ResultRecord:
    """One measurement for `write_run`; `label` (the model, perhaps with the method) is its row's, if --row has none."""
    return make_record(label, metrics, table=None if args.row is None else table, row=args.row or label, **about)


def write_run(args: argparse.Namespace, table: str, records: Sequence[ResultRecord], old: Path | None = None) -> Path:
    """Keep what a command measured in one file, in the main process only -> the file.

    In results/ with --row, else in output/<table>/. `args` has the flags of `command_line.add_record_flags`. `table` is
    what was measured: the table that may show it, and the file's name by default, with the first label behind it.
    `old` is the file of the same run with fewer measurements, whose place the new one takes.
    """
    identity = [[each.row, each.dataset, each.config, each.checkpoint_sha256] for each in records]
    more = f"_and_{len(records) - 1}_more" if len(records) > 1 else ""
    name = record_name(f"{args.output or table}_{records[0].name}{more}", identity)
    path = write_records(name, records, OUTPUT_DIR / table if args.row is None else RESULTS_DIR)
    if old not in (None, path):
        old.unlink()
    return path
