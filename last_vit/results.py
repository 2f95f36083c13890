"""Results with their lineage: one JSON file per run of a command, from which the tables of docs/ are generated.

A record says what was measured, on what, with which weights, code, command and machine; no absolute path is kept, so
that it says nothing about the machine. Tables are made by tools/make_results_tables.py; nothing here formats numbers.
"""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from last_vit.atomic_file import atomic_file
from last_vit.data.imagenet_layout import SPLITS
from last_vit.runtime import describe_device, world_size

ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIR = Path("results")
# An absolute path anywhere in a text: at its start or after anything that cannot be part of a path, behind "file://",
# and behind an open_clip architecture, where the "/" before it is a separator. "tcp://host" is none.
_ABSOLUTE = re.compile(r"(\bopen_clip:[^/\s]+/|\bfile://|(?<![\w.~/-]))(/[^/\s'\",\[\](){}][^'\",\[\](){}]*)")

_LIST = re.compile(r"\[\n +([^\[\]{}]+?)\n +\]")  # of JSON with line breaks, without lists inside: one line in files


@dataclass(frozen=True)
class ResultRecord:
    """One measurement of one model; its settings and texts hold no absolute path."""

    name: str  # of the file, without ".json"; several measurements of one run share it
    metrics: dict[str, float]  # percentages are 0-100
    n_images: int  # that the metrics are over
    # data set, split and input in words, "Tiny-ImageNet-100 val, 64 px": rows of different inputs are never one
    dataset: str
    config: dict[str, Any]  # the settings that make the number, JSON values only
    checkpoint_sha256: str | None  # first 16 hex digits of the weights file; None when no file was read
    git_commit: str  # as `git_commit` gives it
    command: str  # as `run_command` gives it
    device: str  # in words
    num_processes: int  # that shared the images
    seconds: float  # wall time of the evaluation loop
    images_per_second: float  # all processes together
    date: str  # UTC, ISO 8601
    table: str | None = None  # of docs/, that shows the record
    row: str | None = None  # label of its row there; records that share it (seeds) are averaged
    by_layer: list[dict[str, float | str]] | None = None  # at each layer: "layer", its name, and numbers
    details: list[list[float | str]] | None = None  # what the metrics are made of, line by line, a heading first


def make_record(
    name: str,
    metrics: Mapping[str, float],
    *,
    n_images: int,
    config: Mapping[str, Any],
    seconds: float,
    device: torch.device | str,
    **about: Any,
) -> ResultRecord:
    """A record of what this process has just measured; `about` are the fields of `ResultRecord` that it cannot know.

    ValueError for a metric that is NaN or infinite, no images, no time.
    """
    if n_images < 1 or not seconds > 0:
        raise ValueError(f"result {name!r} needs at least one image and some time, got {n_images} in {seconds} s")
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {key!r} of result {name!r} is {value}; a result must be a finite number")
    return ResultRecord(
        name=name,
        metrics={key: round(float(value), 4) for key, value in metrics.items()},
        n_images=n_images,
        config=_hide_in_values(dict(config)),
        git_commit=git_commit(),
        command=run_command(),
        device=describe_device(device),
        num_processes=world_size(),
        seconds=round(seconds, 3),
        images_per_second=round(n_images / seconds, 2),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
    )


def write_records(name: str, records: Sequence[ResultRecord], directory: Path = RESULTS_DIR) -> Path:
    """Write `<directory>/<name>.json`, replacing an older one only once the new one is whole on disk; returns the file.

    Of several records, what they share stands once, the rest in the list "measurements". For the main process only.
    """
    shared, *others = [asdict(replace(record, name=name)) for record in records]
    if others:
        parts = [shared, *others]
        shared = {key: value for key, value in shared.items() if all(other[key] == value for other in others)}
        shared["measurements"] = [{key: part[key] for key in part if key not in shared} for part in parts]
    path = directory / f"{name}.json"
    text = json.dumps(shared, indent=2, allow_nan=False)
    text = _LIST.sub(lambda found: "[" + re.sub(r"\n +", " ", found[1]) + "]", text)
    with atomic_file(path) as file:
        file.write((text + "\n").encode())
    return path


def write_result(name: str, metrics: Mapping[str, float], directory: Path = RESULTS_DIR, **about: Any) -> Path:
    """Write one measurement as a file of its own; `about` are the other arguments of `make_record`."""
    return write_records(name, [make_record(name, metrics, **about)], directory)


def read_results(directory: Path = RESULTS_DIR) -> list[ResultRecord]:
    """All measurements of a folder, sorted by file name, then as a file has them; ValueError for a file of none."""
    known = {field.name for field in fields(ResultRecord)}
    required = known - {"table", "row", "by_layer", "details"}
    records = []
    for path in sorted(directory.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); run its evaluation again") from error
        shared = content if isinstance(content, dict) else {}
        parts = shared.pop("measurements", [{}])
        for part in parts if isinstance(parts, list) else [None]:
            entries = shared | part if isinstance(part, dict) else {}
            keys = set(entries)
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


def record_name(stem: str, *identity: Any) -> str:
    """A record's file name that two different measurements never share; the same one again takes its own file.

    It is the usable name nearest to `stem`, and eight digits that stand for everything else.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    return f"{result_name(stem)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def dataset_name(root: str | Path, split: str) -> str:
    """What a data set is called in records that name none: its folder, of which `root` may also be a split's.

    Example:
        >>> dataset_name("imagenet/val", "val")
        'imagenet'
    """
    folder = Path(root).resolve()
    return (folder.parent if folder.name in (*SPLITS, split) else folder).name or "root"


def git_commit() -> str:
    """Short hash of this code's commit, with "-dirty" when a tracked file of code differs."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    not_code = [f":(top,exclude){path}" for path in ("results", "docs", "README.md")]
    try:
        if git("rev-parse", "--show-prefix"):  # installed below another repository
            return "unknown"
        commit = git("rev-parse", "--short", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *not_code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changes else "")


def run_command() -> str:
    """The command of this process, quoted for a shell, to be run from the repository's root, without absolute paths.

    Such as "torchrun --nproc-per-node=2 visualization/evaluate_patch_hit.py --imagenet-root .../imagenet". The launcher
    is torchrun only where torchrun started this process: detectron2's own is an argument (`--num-gpus`) of the script.
    """
    launcher = ["python"]
    if distributed.is_torchelastic_launched():
        launcher = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]
    script, found = sys.argv[0], Path(sys.argv[0]).resolve()
    if found.is_file() and found.is_relative_to(ROOT):
        script = found.relative_to(ROOT).as_posix()
    return shlex.join([*launcher, *(hide_machine_paths(word) for word in (script, *sys.argv[1:]))])


def hide_machine_paths(text: str) -> str:
    """A text without the absolute paths in it, also as `key=/path`, in lists, and after `open_clip:<arch>/`.

    A path under the current folder becomes relative to it; of any other the last part stays, behind ".../".

    Example:
        >>> hide_machine_paths("dataloader.train.dataset.root=/mnt/disk3/imagenet")
        'dataloader.train.dataset.root=.../imagenet'
    """

    def hide(match: re.Match[str]) -> str:
        before, path = match[1], Path(match[2])
        is_near = path.is_relative_to(Path.cwd())
        return before + (path.relative_to(Path.cwd()).as_posix() if is_near else f".../{path.name}")

    return _ABSOLUTE.sub(hide, text)


def _hide_in_values(value: Any) -> Any:
    """The values of a config, however deep, without absolute paths."""
    if isinstance(value, str):
        return hide_machine_paths(value)
    if isinstance(value, Mapping):
        return {key: _hide_in_values(entry) for key, entry in value.items()}
    return [_hide_in_values(entry) for entry in value] if isinstance(value, list | tuple) else value
