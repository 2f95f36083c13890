"""What a run leaves beside its checkpoints, and which of them it goes on from.

`<logs>/<name>/checkpoints/` holds open_clip's `epoch_<n>.pt`, and `last_vit.json`:

    {"pool": "last", "top_k": 0.5, "variant": "release", "model": "ViT-B-16-quickgelu", "force_quick_gelu": false}

(null for what a pool does not have; last_vit/clip_models.py reads it), and, for a model whose configuration is
not one of open_clip's, the configuration as `<model>.json`, which --model takes. Checkpoints are written atomically.
"""

import argparse
import json
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, save_checkpoint
from last_vit.clip_models import RECORD_FILE, read_clip_record
from last_vit.runtime import get_logger

_LATEST = "epoch_latest.pt"
_EPOCH = re.compile(r"epoch_(\d+)\.pt")


def record_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `last_vit.json` holds for a run."""
    is_last = args.pooling == "last"
    return {
        "pool": args.pooling,
        "top_k": args.top_k if is_last else None,
        "variant": (args.variant or "release") if is_last else None,
        "model": args.model,
        "force_quick_gelu": bool(args.force_quick_gelu),
    }


def write_record(folder: Path, args: argparse.Namespace) -> None:
    """Write `last_vit.json`, and the model's configuration where open_clip has none of that name; main process only."""
    if args.rank != 0 or args.logs.lower() == "none":
        return
    import open_clip

    with atomic_file(folder / RECORD_FILE) as file:
        file.write((json.dumps(record_of(args), indent=2) + "\n").encode())
    builtin = Path(open_clip.__file__).parent / "model_configs" / f"{args.model}.json"
    if ":" not in args.model and not builtin.is_file():
        with atomic_file(folder / f"{args.model}.json") as file:
            file.write((json.dumps(open_clip.get_model_config(args.model), indent=2) + "\n").encode())


def check_record(checkpoint: Path, args: argparse.Namespace) -> None:
    """Compare a run with the record beside the checkpoint that it is to be continued from; no record is a warning.

    Raises:
        ValueError: They differ, or the record cannot be read.
    """
    record = read_clip_record(checkpoint)
    if record is None:
        get_logger().warning(
            f"{checkpoint.parent} has no {RECORD_FILE}; its checkpoints are taken to be pooled as this run is"
        )
        return
    wanted = record_of(args)
    differing = [name for name in wanted if getattr(record, name) != wanted[name]]
    if differing:
        listed = ", ".join(f"{name} {getattr(record, name)!r} -> {wanted[name]!r}" for name in differing)
        raise ValueError(
            f"--resume goes on with a run of another kind ({listed}); give its own flags, or begin a new run from its "
            f"weights with --pretrained FILE and another --name"
        )


def save_whole(checkpoint: dict[str, Any], path: str) -> None:
    """`torch.save` as open_clip_train calls it: finite weights only, and atomically.

    Raises:
        FloatingPointError: A weight is NaN or infinite; earlier files are untouched.
        OSError: The file cannot be written; earlier files are untouched.
    """
    check_finite(checkpoint["state_dict"])
    save_checkpoint(path, checkpoint)


def latest_checkpoint(host: Callable[[str, bool], str | None], path: str, remote: bool) -> str | None:
    """The checkpoint of the last epoch in a folder, for --resume latest.

    open_clip takes the last `*.pt` by name: also `tmp.pt`, half-written when a run was killed, also an old
    `epoch_latest.pt`, and also those of folders whose name begins alike.

    Args:
        host: open_clip's own function, for `remote` paths.
        path: Folder with checkpoints.
        remote: Whether it is on S3.

    Returns:
        Path of a whole file, or None.
    """
    if remote:
        return host(path, remote)
    found = {}
    for file in sorted(Path(path).glob("epoch_*.pt")):
        match = _EPOCH.fullmatch(file.name)
        if match is None and file.name != _LATEST:
            continue
        if not zipfile.is_zipfile(file):  # its directory is written last
            logging.warning(f"{file} is incomplete, from a run that was killed while it was written; passed over")
            continue
        epoch = int(match[1]) if match else torch.load(file, map_location="cpu", mmap=True, weights_only=True)["epoch"]
        found[epoch] = file
    return str(found[max(found)]) if found else None
