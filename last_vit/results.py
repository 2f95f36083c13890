"""Results with their lineage: one JSON file per evaluation, from which README's tables are generated.

A record says what was measured, on what, with which weights, code, command and machine. Tables are made by
tools/make_results_tables.py; nothing here formats numbers.
"""

import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from last_vit.data.imagenet_layout import SPLITS
from last_vit.run_command import hide_machine_paths, run_command
from last_vit.runtime import describe_device, world_size

RESULTS_DIR = Path("results")


@dataclass(frozen=True)
class ResultRecord:
    """One evaluation.

    Attributes:
        name: File name without ".json".
        metrics: Metric name -> value; percentages are 0-100.
        n_images: Images that the metrics are over.
        dataset: Data set, split and input in words, such as "Tiny-ImageNet-100 val, 64 px": rows of different inputs
            are never shown as one.
        config: The settings that make the number, JSON values only; absolute paths shortened as in `command`.
        checkpoint_sha256: First 16 hex digits of the weights file; None when no file was read.
        git_commit: Short hash of the code, "-dirty" when tracked code differs from it, "unknown" outside a repository.
        command: What was run, without absolute paths (see run_command.py).
        device: Device in words.
        num_processes: Processes that shared the images.
        seconds: Wall time of the evaluation loop.
        images_per_second: n_images / seconds, all processes together.
        date: UTC, ISO 8601.
        table: README table that shows the record; None for none.
        row: Label of its row there; records that share it (seeds) are averaged.
    """

    name: str
    metrics: dict[str, float]
    n_images: int
    dataset: str
    config: dict[str, Any]
    checkpoint_sha256: str | None
    git_commit: str
    command: str
    device: str
    num_processes: int
    seconds: float
    images_per_second: float
    date: str
    table: str | None = None
    row: str | None = None


def write_result(
    name: str,
    metrics: Mapping[str, float],
    *,
    n_images: int,
    dataset: str,
    config: Mapping[str, Any],
    checkpoint_sha256: str | None,
    seconds: float,
    device: torch.device | str,
    table: str | None = None,
    row: str | None = None,
    directory: Path = RESULTS_DIR,
) -> Path:
    """Write `<directory>/<name>.json`, replacing an older one only once the new one is whole on disk.

    Git commit, command, number of processes, images per second and date are filled in here. Call it in the main
    process only.

    Args:
        name: Letters, digits, ".", "_" and "-".
        metrics: Finite numbers.
        n_images: At least 1.
        dataset: As in `ResultRecord`.
        config: As in `ResultRecord`.
        checkpoint_sha256: As in `ResultRecord`.
        seconds: Positive.
        device: Where the model ran.
        table: As in `ResultRecord`.
        row: As in `ResultRecord`; needed with `table`.
        directory: Made when missing.

    Returns:
        The written file.

    Raises:
        ValueError: A value that is NaN or infinite, an unusable name, no images, a table without row.
    """
    if name != result_name(name):
        raise ValueError(
            f"a result's name is a file name of letters, digits, '.', '_' and '-', got {name!r}; "
            f"use {result_name(name)!r}"
        )
    if n_images < 1 or not seconds > 0:
        raise ValueError(f"result {name!r} needs at least one image and some time, got {n_images} in {seconds} s")
    if table is not None and row is None:
        raise ValueError(f"result {name!r} names the table {table!r} but no row label; give one, or leave both out")
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {key!r} of result {name!r} is {value}; a result must be a finite number")
    record = ResultRecord(
        name=name,
        metrics={key: round(float(value), 4) for key, value in metrics.items()},
        n_images=n_images,
        dataset=dataset,
        config=_hide_machine_paths(dict(config)),
        checkpoint_sha256=checkpoint_sha256,
        git_commit=git_commit(),
        command=run_command(),
        device=describe_device(device),
        num_processes=world_size(),
        seconds=round(seconds, 3),
        images_per_second=round(n_images / seconds, 2),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        table=table,
        row=row,
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    _write_atomically(path, json.dumps(asdict(record), indent=2, allow_nan=False) + "\n")
    return path


def read_results(directory: Path = RESULTS_DIR) -> list[ResultRecord]:
    """All records of a folder, sorted by file name.

    Raises:
        ValueError: A file that is no record; the message names it and what is missing or unknown.
    """
    known = {field.name for field in fields(ResultRecord)}
    required = known - {"table", "row"}
    records = []
    for path in sorted(directory.glob("*.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); run its evaluation again") from error
        keys = set(entries) if isinstance(entries, dict) else set()
        if not required <= keys <= known:
            raise ValueError(
                f"{path} is not a result: missing {sorted(required - keys)}, unknown {sorted(keys - known)}; "
                f"run its evaluation again"
            )
        records.append(ResultRecord(**entries))
    return records


def result_name(text: str) -> str:
    """The usable record name nearest to any text: runs of other characters become "_"; a usable name stays as it is.

    Example:
        >>> result_name("patch_hit_ViT-B/16, K = 1")
        'patch_hit_ViT-B_16_K_1'
    """
    return re.sub(r"^(?:[.-]+|$)", "_", re.sub(r"[^A-Za-z0-9._-]+", "_", text))


def dataset_name(root: str | Path, split: str) -> str:
    """What a data set is called in records that name none: its folder, of which `root` may also be a split's.

    Args:
        root: As the data set took it, for example "imagenet" or "imagenet/val".
        split: The split that was read.

    Returns:
        The folder's own name, "imagenet".
    """
    folder = Path(root).resolve()
    return (folder.parent if folder.name in (*SPLITS, split) else folder).name or "root"


def git_commit() -> str:
    """Short hash of this code's commit, with "-dirty" when a tracked file other than results and README differs."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changes = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":/",
            ":(top,exclude)results",
            ":(top,exclude)README.md",
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changes else "")


def _hide_machine_paths(value: Any) -> Any:
    """The values of a config, however deep, without absolute paths."""
    if isinstance(value, str):
        return hide_machine_paths(value)
    if isinstance(value, Mapping):
        return {key: _hide_machine_paths(entry) for key, entry in value.items()}
    return [_hide_machine_paths(entry) for entry in value] if isinstance(value, list | tuple) else value


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
