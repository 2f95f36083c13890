"""DINO's linear classifier on frozen features: its training, its schedule, its checkpoints.

    <output_dir>/checkpoint.pth.tar: {"epoch": done, "state_dict": {"module.linear.*"}, "optimizer": ...,
     "best_acc": top-1 in percent, "features": what it reads, "training": how, "history": a line of log.txt per epoch}

The first four are DINO's, so its own files of this name, and its released linear weights under it, are read as well.

Letters: F features of an image, C classes.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import frozen_features as frozen
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, load_strict, read_checkpoint, save_checkpoint
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import build_train_loader, process_share
from last_vit.data.transforms import train_transform
from last_vit.evaluation import eval_transform
from last_vit.late_scalars import LateScalars
from last_vit.metrics.summed_counters import SummedCounters
from last_vit.metrics.top_k import TopK
from last_vit.models import TrainedModel
from last_vit.runtime import all_reduce_sum, get_logger, is_main_process, process_group, rank, world_size
from last_vit.train_lib import require_finite

CHECKPOINT = "checkpoint.pth.tar"
_SEED = 0
_REMEDY = "use a smaller --lr than now"


def run(args: argparse.Namespace) -> None:
    """Features of val once, then the classifier: trained from where its checkpoint stands, or only validated."""
    with process_group(args.device, args.dist_url) as device:
        trained = frozen.load_backbone(args, args.image_size, args.resize)
        prep = trained.preprocessing
        train, val = frozen.open_splits(args, train_transform(prep.crop, prep.mean, prep.std), eval_transform(prep))
        try:
            train.number_as(args.num_labels)
            val.number_as(args.num_labels)
        except ValueError as error:
            raise ValueError(
                f"--num_labels is {args.num_labels}, but {error}; or give --num_labels {len(train.classes)}"
            ) from error
        trained.model.to(device).requires_grad_(False)
        read = frozen.layer_reader(trained.model, args.n_last_blocks, args.avgpool_patchtokens)
        features = frozen.describe_backbone(args, trained)
        features |= {"n_last_blocks": args.n_last_blocks, "avgpool_patchtokens": args.avgpool_patchtokens}
        start = time.perf_counter()
        share = process_share(len(val), rank())
        val_features = frozen.extract_features(trained, val, read, args, device)
        val_labels = torch.from_numpy(val.labels[share.start : share.stop])
        probe = build_probe(val_features.shape[1], args.num_labels).to(device)
        metrics, training = run_probe(args, trained, read, probe, train, (val_features, val_labels), features)
        seconds = time.perf_counter() - start
        if is_main_process():
            print(
                f"{args.arch}, {frozen.images_name(args, trained)}: top-1 {metrics['acc1']:.2f}, "
                f"top-5 {metrics['acc5']:.2f}; best top-1 of the epochs validated {metrics['best_acc1']:.2f}"
            )
            config = {**features, **training, "num_labels": args.num_labels}
            frozen.write_backbone_record(args, trained, "linear", metrics, config, len(val), seconds, device)


def run_probe(
    args: argparse.Namespace,
    trained: TrainedModel,
    read: frozen.Reader,
    probe: nn.Linear,
    train: ImageNetDataset,
    val: tuple[Tensor, Tensor],
    features: dict[str, Any],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Train the classifier from where its checkpoint stands, or with `args.evaluate` only validate it.

    Returns "acc1" and "acc5" after the last epoch, and "best_acc1", in percent; and how the classifier was trained:
    "epochs", "lr" and "batch_size", None where nobody knows. A checkpoint of another training is a ValueError.
    """
    logger = get_logger("linear")
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.0, momentum=0.9)  # `train_epoch` sets the learning rate
    batch_size = args.batch_size_per_gpu * world_size()
    training = {"epochs": args.epochs, "lr": args.lr, "batch_size": batch_size}
    state = {"epoch": 0, "best_acc": 0.0, "features": features, "training": training, "history": []}
    path = args.output_dir / CHECKPOINT
    if args.evaluate or path.exists():
        state |= load_probe(path, probe, optimizer, features)
        if args.evaluate or state["epoch"] >= args.epochs:
            found = validate(probe, *val)
            known = {name: state["training"].get(name) for name in training} | {"epochs": state["epoch"] or None}
            return {**found, "best_acc1": max(state["best_acc"], found["acc1"])}, known
        if different := frozen.differences(state["training"], training):
            raise ValueError(
                f"{path} was trained otherwise: {different}. Go on with its own flags (batch_size is that of all "
                "processes), or give another --output_dir"
            )
        state["training"] = training
    num_steps, first, found = math.ceil(len(train) / batch_size), state["epoch"], {}
    loader = build_train_loader(train, args.batch_size_per_gpu, args.num_workers, start_iteration=first * num_steps)
    batches = iter(loader)
    for epoch in range(first, args.epochs):
        lr = learning_rate(args.lr, batch_size, epoch, args.epochs)
        loss = train_epoch(trained.model, read, probe, optimizer, batches, num_steps, lr)
        line = {"epoch": epoch, "train_lr": lr, "train_loss": loss}
        if (epoch + 1) % args.val_freq == 0 or epoch + 1 == args.epochs:
            found = validate(probe, *val)
            state["best_acc"] = max(state["best_acc"], found["acc1"])
            line |= {f"test_{name}": value for name, value in found.items()}
        state["epoch"] = epoch + 1
        state["history"].append(line)
        logger.info("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
        if is_main_process():
            save_probe(path, probe, optimizer, state)
    return {**found, "best_acc1": state["best_acc"]}, training


def build_probe(num_features: int, num_labels: int) -> nn.Linear:
    """One linear layer, [B, F] -> logits [B, C]: weights from N(0, 0.01), no bias at the start, in every process."""
    probe = nn.Linear(num_features, num_labels)
    nn.init.normal_(probe.weight, std=0.01, generator=torch.Generator().manual_seed(_SEED))
    nn.init.zeros_(probe.bias)
    return probe


def learning_rate(base: float, batch_size: int, epoch: int, epochs: int) -> float:
    """Of an epoch counted from 0: a cosine from `base` * images per step of all processes / 256 towards 0."""
    return base * batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def train_epoch(
    backbone: nn.Module,
    read: frozen.Reader,
    probe: nn.Linear,
    optimizer: torch.optim.SGD,
    batches: Iterator[Mapping[str, Any]],
    num_steps: int,
    lr: float,
) -> float:
    """Train the probe for an epoch, gradients averaged over the processes; returns the mean loss of all of them.

    `batches` never end, and are of one size in every process. A loss that is not finite is a FloatingPointError, one
    step late.
    """
    device = probe.weight.device
    for group in optimizer.param_groups:
        group["lr"] = lr
    losses, late = SummedCounters("loss"), {}
    for step, batch in enumerate(itertools.islice(batches, num_steps)):
        with torch.no_grad():
            features = read(backbone, batch["image"].to(device, non_blocking=True))
        loss = F.cross_entropy(probe(features), batch["label"].to(device, non_blocking=True))
        require_finite(late, f"in step {step - 1} of the epoch", _REMEDY)
        late = LateScalars(("loss",), loss.detach().reshape(1))
        optimizer.zero_grad()
        loss.backward()
        for parameter in probe.parameters():
            parameter.grad = all_reduce_sum(parameter.grad) / world_size()
        optimizer.step()
        losses.add(loss=loss)
    require_finite(late, f"in step {num_steps - 1} of the epoch", _REMEDY)
    return losses.totals()["loss"] / (num_steps * world_size())


@torch.no_grad()
def validate(probe: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy over the shares of all processes, [share, F] and [share] on the CPU: "acc1" and "acc5" in percent."""
    device, top_k = probe.weight.device, TopK()
    for rows, targets in zip(features.split(4096), labels.split(4096), strict=True):
        if len(rows):
            top_k.update(probe(rows.to(device)), targets.to(device))
    found = top_k.compute()
    return {name: found[name] for name in ("acc1", "acc5")}


def save_probe(path: Path, probe: nn.Linear, optimizer: torch.optim.SGD, state: Mapping[str, Any]) -> None:
    """Write the checkpoint and, from its history, log.txt beside it, both atomically; in the main process only.

    A weight that is NaN or infinite is a FloatingPointError; earlier files are untouched, as after a failed write.
    """
    weights = {f"module.linear.{name}": tensor for name, tensor in probe.state_dict().items()}
    check_finite(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {**state, "state_dict": weights, "optimizer": optimizer.state_dict()})
    with atomic_file(path.with_name("log.txt")) as file:
        file.write("".join(json.dumps(line) + "\n" for line in state["history"]).encode())


def load_probe(path: Path, probe: nn.Linear, optimizer: torch.optim.SGD, features: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of ours or of DINO's into the probe and, where the file has its state, the optimizer.

    Returns "epoch", "best_acc", "training" and "history" of the file, where it has them. A damaged file, or one of a
    classifier of other `features`, is a ValueError.
    """
    content = read_checkpoint(path)
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} is no linear classifier: it holds {', '.join(map(str, content))}")
    if different := frozen.differences(content.get("features", {}), features):
        raise ValueError(f"{path} reads other features: {different}. Give its own flags, or another --output_dir")
    weights = {name.removeprefix("module.").removeprefix("linear."): each for name, each in weights.items()}
    try:
        load_strict(probe, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "optimizer" in content:
        optimizer.load_state_dict(content["optimizer"])
    defaults = {"epoch": 0, "best_acc": 0.0, "training": {}, "history": []}
    return {name: content.get(name, default) for name, default in defaults.items()}
