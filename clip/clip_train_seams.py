"""How train_clip.py reaches into open_clip_train: names in its modules are given other values while it runs.

open_clip_train 3.3 has no hooks, but its `main` looks up what it calls by name. What is put there:

| module | name | in place of it |
|---|---|---|
| main | parse_args | the arguments that are parsed and checked already |
| main | create_model_and_transforms | the same with files read by ours; then the pool is attached and recorded |
| main | get_latest_checkpoint | the newest whole checkpoint (clip_train_record.py) |
| main | train_one_epoch, evaluate | the same, with counted batches and a watched loss (clip_train_epoch.py) |
| main | torch | torch, with an atomic `save` and a DistributedDataParallel that takes a CPU |
| data | get_dataset_fn | the same, with our types of data, and faulty samples skipped and counted |
| zero_shot | accuracy | the same, on numpy 2.4 as well |
"""

import argparse
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from clip_train_data import dataset_function
from clip_train_epoch import guard_epoch, report_evaluation
from clip_train_overlay import Overlay, replaced
from clip_train_record import latest_checkpoint, save_whole, write_record
from clip_train_skips import SkipCounter
from open_clip_train import data as host_data
from open_clip_train import main as host
from open_clip_train import zero_shot
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from last_vit.clip_models import ClipCheckpoint, load_clip_weights
from last_vit.dense import attach_pool


@contextmanager
def training_seams(
    args: argparse.Namespace, image_hw: tuple[int, int], pretrained: ClipCheckpoint | None
) -> Iterator[None]:
    """Everything of this module's table, for one call of `open_clip_train.main.main`.

    Args:
        args: As open_clip parses them, and ours.
        image_hw: Of the image tower, in pixels.
        pretrained: The file of --pretrained, None for a tag or random weights.
    """
    skips = {"train": SkipCounter(), "val": SkipCounter()}
    parallel = Overlay(torch.nn.parallel, DistributedDataParallel=_data_parallel)
    names = {
        "parse_args": lambda _: args,
        "create_model_and_transforms": _attaching(host.create_model_and_transforms, args, pretrained),
        "get_latest_checkpoint": functools.partial(latest_checkpoint, host.get_latest_checkpoint),
        "train_one_epoch": guard_epoch(host.train_one_epoch, skips["train"]),
        "evaluate": report_evaluation(host.evaluate, skips["val"]),
        "torch": Overlay(torch, save=save_whole, nn=Overlay(torch.nn, parallel=parallel)),
    }
    data = {"get_dataset_fn": dataset_function(host_data.get_dataset_fn, skips, image_hw)}
    with ExitStack() as stack:
        stack.enter_context(replaced(host, **names))
        stack.enter_context(replaced(host_data, **data))
        stack.enter_context(replaced(zero_shot, accuracy=_top_k_counts))
        yield


def _attaching(
    create: Callable[..., tuple], args: argparse.Namespace, pretrained: ClipCheckpoint | None
) -> Callable[..., tuple]:
    """`create_model_and_transforms` whose first model, the trained one, pools as asked; a distillation teacher not."""
    is_first = True

    def create_and_attach(model_name: str, tag: str, **named: Any) -> tuple:
        nonlocal is_first
        if not is_first:
            return create(model_name, tag, **named)
        is_first = False
        if pretrained is not None:  # read by our own reader, which knows more formats and refuses other towers
            tag, named = "", {**named, "pretrained_image": False}
        model, *transforms = create(model_name, tag, **named)
        if pretrained is not None:
            _load(model, args, pretrained)
        attach_pool(model, args.pooling, args.top_k, variant=args.variant or "release")
        if args.train_data or args.dataset_type == "synthetic":
            write_record(Path(args.checkpoint_path), args)
        return model, *transforms

    return create_and_attach


def _load(model: torch.nn.Module, args: argparse.Namespace, pretrained: ClipCheckpoint) -> None:
    """Load the file of --pretrained; a sigmoid loss begins with no bias where the file has none, as in open_clip."""
    if args.siglip and "logit_bias" not in pretrained.weights:
        pretrained.weights["logit_bias"] = torch.zeros_like(pretrained.weights["logit_scale"])
    notes = load_clip_weights(model, args.model, pretrained)
    logging.info(f"Loaded {pretrained.path} (SHA-256 {pretrained.sha256[:16]}){'; '.join(('', *notes))}")


def _top_k_counts(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[float]:
    """How many of [B, C] scores have their [B] labels in the top k; open_clip_train's own fails on numpy 2.4."""
    is_hit = output.topk(max(topk), dim=1).indices == target[:, None]
    return [float(is_hit[:, :k].sum()) for k in topk]


def _data_parallel(module: torch.nn.Module, device_ids: list[Any], **named: Any) -> DistributedDataParallel:
    """DDP as open_clip calls it; torch refuses `device_ids` for modules on a CPU."""
    on_cpu = all(torch.device(device).type == "cpu" for device in device_ids)
    return DistributedDataParallel(module, device_ids=None if on_cpu else device_ids, **named)
