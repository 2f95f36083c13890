"""How train_clip.py reaches into open_clip_train: names in its modules are given other values while it runs.

open_clip_train 3.3 has no hooks, but looks up what it calls by name. `SEAMS` is every name that is replaced, and why.
"""

import argparse
import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from clip_train_data import Overlay, ReportedLoader, dataset_function
from open_clip_train import data as host_data
from open_clip_train import main as host
from open_clip_train import zero_shot as host_zero_shot
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, read_checkpoint, save_checkpoint
from last_vit.clip_checkpoints import RECORD_FILE, ClipCheckpoint, read_clip_record
from last_vit.clip_models import load_clip_weights
from last_vit.dense import attach_pool
from last_vit.late_scalars import LateScalars, StopVote
from last_vit.runtime import get_logger
from last_vit.train_lib import require_finite, stop_run, way_on

SEAMS = {
    "main.parse_args": "the arguments are parsed and checked already, ours among them",
    "main.create_model_and_transforms": "attach the pool, record it, and read --pretrained files of every CLIP layout",
    "main.get_latest_checkpoint": "--resume latest takes the newest whole checkpoint of the folder, no leftover tmp.pt",
    "main.train_one_epoch": "stop at a loss that is not finite; save when asked to stop, and go on within an epoch",
    "main.torch": "save atomically and finite weights only; train on several CPUs, whose device_ids torch refuses",
    "data.get_dataset_fn": "COCO captions, class folders and drawn images; say what was skipped (clip_train_data.py)",
    "data.CsvDataset": "skip and count faulty rows, which end open_clip's run",
    "data.log_and_continue": "count what open_clip only logs",
    "data.tarfile_to_samples_nothrow": "count broken archives, also those that are merely cut short; of training",
    "data.wds": "the same of validation, in tarfile_to_samples; 16-bit grey of both, in decode",
    "zero_shot.accuracy": "open_clip's fails on numpy 2.4",
}


@contextmanager
def training_seams(args: argparse.Namespace, image_size: int, pretrained: ClipCheckpoint | None) -> Iterator[None]:
    """Everything in `SEAMS`, for one call of `open_clip_train.main.main`; those of data while a data set is built."""
    parallel = Overlay(torch.nn.parallel, DistributedDataParallel=_data_parallel)
    seams = {
        host: {
            "parse_args": lambda _: args,
            "create_model_and_transforms": _attaching(host.create_model_and_transforms, args, pretrained),
            "get_latest_checkpoint": functools.partial(_latest_checkpoint, host.get_latest_checkpoint),
            "train_one_epoch": functools.partial(watched_epoch, host.train_one_epoch),
            "torch": Overlay(torch, save=functools.partial(_save, args), nn=Overlay(torch.nn, parallel=parallel)),
        },
        host_data: {"get_dataset_fn": dataset_function(host_data.get_dataset_fn, image_size)},
        host_zero_shot: {"accuracy": _top_k_counts},
    }
    with ExitStack() as stack:
        for module, names in seams.items():
            stack.enter_context(patch.multiple(module, **names))
        yield


def _attaching(create: Callable, args: argparse.Namespace, pretrained: ClipCheckpoint | None) -> Callable[..., tuple]:
    """`create_model_and_transforms` whose first model, the trained one, pools as asked; a distillation teacher not."""
    calls = itertools.count()

    def create_and_attach(model_name: str, tag: str, **named: Any) -> tuple:
        if next(calls):
            return create(model_name, tag, **named)
        if pretrained is not None:
            tag, named = "", {**named, "pretrained_image": False}
        model, *transforms = create(model_name, tag, **named)
        if pretrained is not None:
            if args.siglip and "logit_bias" not in pretrained.weights:  # begins with no bias, as in open_clip
                pretrained.weights["logit_bias"] = torch.zeros_like(pretrained.weights["logit_scale"])
            notes = load_clip_weights(model, args.model, pretrained)
            logging.info(f"Loaded {pretrained.path} (SHA-256 {pretrained.sha256[:16]}){'; '.join(('', *notes))}")
        attach_pool(model, args.pooling, args.top_k, variant=args.variant or "release")
        if args.train_data or args.dataset_type == "synthetic":
            write_record(Path(args.checkpoint_path), args)
        return model, *transforms

    return create_and_attach


def _pooling(args: argparse.Namespace) -> dict[str, Any]:
    is_last = args.pooling == "last"
    return {"pool": args.pooling, "top_k": args.top_k, "variant": (args.variant or "release") if is_last else None}


def record_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `last_vit.json` holds for a run; null for what a pool does not have."""
    return {**_pooling(args), "model": args.model, "force_quick_gelu": bool(args.force_quick_gelu)}


def write_record(folder: Path, args: argparse.Namespace) -> None:
    """Write `last_vit.json`, and the model's configuration where open_clip has none of that name; main process only."""
    if args.rank != 0 or args.logs.lower() == "none":
        return
    contents = {RECORD_FILE: record_of(args)}
    builtin = Path(open_clip.__file__).parent / "model_configs" / f"{args.model}.json"
    if ":" not in args.model and not builtin.is_file():
        contents[f"{args.model}.json"] = open_clip.get_model_config(args.model)
    for name, content in contents.items():
        with atomic_file(folder / name) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def check_record(checkpoint: Path, args: argparse.Namespace) -> None:
    """Refuse with a ValueError to go on from a checkpoint whose record says that its run was of another kind."""
    record, wanted = read_clip_record(checkpoint), record_of(args)
    if record is None:
        if checkpoint.is_file():
            get_logger().warning(f"no {RECORD_FILE} beside {checkpoint}: it is taken to be pooled as this run is")
        return
    differing = [name for name in wanted if record[name] != wanted[name]]
    if differing:
        listed = ", ".join(f"{name} {record[name]!r} -> {wanted[name]!r}" for name in differing)
        raise ValueError(
            f"--resume goes on with a run of another kind ({listed}); give its own flags, or begin a new run from its "
            f"weights with --pretrained FILE and another --name"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The epoch_N.pt of the highest N, or epoch_latest.pt where that is newer; a save may have left a stale tmp.pt."""
    numbers = [int(path.stem[6:]) for path in folder.glob("epoch_*.pt") if path.stem[6:].isdecimal()]
    found = [folder / f"epoch_{name}.pt" for name in (max(numbers, default=0), "latest")]
    return max(filter(Path.is_file, found), key=lambda path: path.stat().st_mtime, default=None)


def _latest_checkpoint(get_latest: Callable[..., str | None], path: str, remote: bool) -> str | None:
    newest = get_latest(path, remote) if remote else newest_checkpoint(Path(path))
    return None if newest is None else str(newest)


def _save(args: argparse.Namespace, checkpoint: dict[str, Any], path: str) -> None:
    """`torch.save` as open_clip_train calls it: finite weights only, atomically, and with the pooling."""
    check_finite(checkpoint["state_dict"])
    save_checkpoint(path, {**checkpoint, "pooling": {**_pooling(args), "sigma": None}})


class WatchedLoss:
    """open_clip's loss that stops the run when it is not finite, looked at one call late: see `LateScalars`."""

    def __init__(
        self, loss: Callable[..., dict[str, Tensor]], epoch: int, accum_freq: int, hint: str, done: int
    ) -> None:
        self._loss, self._epoch, self._accum_freq, self._hint = loss, epoch, accum_freq, hint
        self._num_calls = done
        self._pending: Mapping[str, float] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As the loss; raises for the loss of the call before, see `check`."""
        terms = self._loss(*args, **kwargs)
        self.check()
        self._pending = LateScalars(tuple(terms), torch.stack([term.detach().float() for term in terms.values()]))
        self._num_calls += 1
        return terms

    def check(self) -> None:
        """Raise FloatingPointError where the last loss is NaN or infinite; names the term, the epoch and the step."""
        step = (self._num_calls - 1) // self._accum_freq
        require_finite(self._pending, f"in epoch {self._epoch}, step {step}", self._hint)


def watched_epoch(
    train_one_epoch: Callable[..., None],
    model: Any,
    data: Any,
    loss: Any,
    epoch: int,
    optimizer: Any,
    scaler: Any,
    scheduler: Callable[[int], None],
    *rest: Any,
    **named: Any,
) -> None:
    """`open_clip_train.train.train_one_epoch` with a `WatchedLoss`, which saves and ends when it is asked to stop.

    A checkpoint within an epoch says how many "batches" of it are done; they are passed over when it is resumed.
    """
    args: argparse.Namespace = rest[-1]
    folder = Path(args.checkpoint_path)
    if not hasattr(args, "done"):
        args.done = _batches_done(args.resume)
    done = args.done.get(epoch, 0)
    advice = "a lower --lr, a longer --warmup or --grad-clip-norm 1.0"
    advice += ", with --precision amp_bf16" if args.precision in ("amp", "fp16", "pure_fp16") else ""
    last = newest_checkpoint(folder)
    watched = WatchedLoss(loss, epoch, args.accum_freq, way_on(last, advice, "--resume latest and "), done)
    vote = StopVote(torch.device(args.device))

    def stop_if_asked(batches: int) -> None:
        if batches % args.accum_freq or not vote():
            return
        watched.check()
        path = folder / "epoch_latest.pt"
        if args.save_logs:
            weights = getattr(model, "_orig_mod", model).state_dict()  # of a compiled model
            content = {"epoch": epoch, "batches": batches, "name": args.name, "state_dict": weights}
            states = {"optimizer": optimizer.state_dict()} | ({"scaler": scaler.state_dict()} if scaler else {})
            _save(args, {**content, **states}, str(path))
        where = f"after {batches // args.accum_freq} steps of epoch {epoch}"
        stop_run(where, path, "--resume=latest", f"--name={args.name}")

    loader: ReportedLoader = data["train"].dataloader
    loader.done, loader.at_border = done, stop_if_asked

    def schedule(step: int) -> None:
        scheduler(step + done // args.accum_freq)

    train_one_epoch(model, data, watched, epoch, optimizer, scaler, schedule, *rest, **named)
    watched.check()


def _batches_done(resume: str | None) -> dict[int, int]:
    """Epoch -> its batches that are done, of a checkpoint within it; {} for one between epochs."""
    if resume is None or Path(resume).name != "epoch_latest.pt" or not Path(resume).is_file():
        return {}
    content = read_checkpoint(resume)
    return {content["epoch"]: content["batches"]} if "batches" in content else {}


def _top_k_counts(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[float]:
    """How many of [B, C] scores have their [B] labels in the top k."""
    is_hit = output.topk(max(topk), dim=1).indices == target[:, None]
    return [float(is_hit[:, :k].sum()) for k in topk]


def _data_parallel(module: torch.nn.Module, device_ids: list[Any], **named: Any) -> DistributedDataParallel:
    on_cpu = all(torch.device(device).type == "cpu" for device in device_ids)
    return DistributedDataParallel(module, device_ids=None if on_cpu else device_ids, **named)
