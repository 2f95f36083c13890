"""DINO's linear classifier on frozen features: its training step, its schedule, its checkpoints.

    <output_dir>/checkpoint.pth.tar: {"epoch": done, "state_dict": {"module.linear.*"}, "optimizer": ...,
     "best_acc": top-1 in percent, "features": what it reads, "history": a dict per epoch}

The first four are DINO's, so its own files of this name, and its released linear weights under it, are read as well.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from frozen_features import Reader
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, load_strict, read_checkpoint, save_checkpoint
from last_vit.metrics.summed_counters import SummedCounters
from last_vit.metrics.top_k import TopK
from last_vit.runtime import all_reduce_sum, world_size
from last_vit.train_lib import LateScalars

CHECKPOINT = "checkpoint.pth.tar"
_DDP = "module."
_SEED = 0


class LinearProbe(nn.Module):
    """One linear layer, weights from N(0, 0.01), no bias at the start; the same in every process.

    Args:
        num_features: F.
        num_labels: C.
    """

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_labels)
        nn.init.normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(_SEED))
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> logits [B, C]."""
        return self.linear(features)


def build_optimizer(probe: LinearProbe) -> torch.optim.SGD:
    """SGD with momentum 0.9 and no weight decay; `train_epoch` sets its learning rate."""
    return torch.optim.SGD(probe.parameters(), lr=0.0, momentum=0.9, weight_decay=0.0)


def learning_rate(base: float, batch_size: int, epoch: int, epochs: int) -> float:
    """Of an epoch counted from 0: a cosine from `base` * images per step of all processes / 256 towards 0."""
    return base * batch_size * world_size() / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def train_epoch(
    backbone: nn.Module,
    read: Reader,
    probe: LinearProbe,
    optimizer: torch.optim.SGD,
    batches: Iterator[Mapping[str, Any]],
    num_steps: int,
    lr: float,
) -> float:
    """Train for an epoch; gradients are averaged over the processes.

    Args:
        backbone: Frozen, in eval mode.
        read: Features of images.
        probe: On the backbone's device; changed in place.
        optimizer: From `build_optimizer`.
        batches: Endless, with "image" and "label"; of one size in every process.
        num_steps: Steps to take.
        lr: Learning rate.

    Returns:
        Mean loss, the same in every process.

    Raises:
        FloatingPointError: The loss is NaN or infinite; it is looked at one step late, so the weights are spoiled.
    """
    device = probe.linear.weight.device
    for group in optimizer.param_groups:
        group["lr"] = lr
    losses, late = SummedCounters("loss"), None
    for step in range(num_steps):
        batch = next(batches)
        with torch.no_grad():
            features = read(backbone, batch["image"].to(device, non_blocking=True))
        loss = F.cross_entropy(probe(features), batch["label"].to(device, non_blocking=True))
        if late is not None:
            _check_loss(late, step - 1)
        late = LateScalars(("loss",), loss.detach().reshape(1))
        optimizer.zero_grad()
        loss.backward()
        for parameter in probe.parameters():
            parameter.grad = all_reduce_sum(parameter.grad) / world_size()
        optimizer.step()
        losses.add(loss=loss)
    if late is not None:
        _check_loss(late, num_steps - 1)
    return losses.totals()["loss"] / (num_steps * world_size())


def _check_loss(late: LateScalars, step: int) -> None:
    if not math.isfinite(late["loss"]):
        raise FloatingPointError(f"loss is {late['loss']} in step {step} of the epoch; use a smaller --lr than now")


@torch.no_grad()
def validate(probe: LinearProbe, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy over the shares of all processes.

    Args:
        probe: On any device.
        features: float32 [share, F] on the CPU.
        labels: int64 [share].

    Returns:
        "acc1" and "acc5" in percent.
    """
    device = probe.linear.weight.device
    top_k = TopK()
    for rows, targets in zip(features.split(4096), labels.split(4096), strict=True):
        if len(rows):
            top_k.update(probe(rows.to(device)), targets.to(device))
    found = top_k.compute()
    return {name: found[name] for name in ("acc1", "acc5")}


class ProbeState(NamedTuple):
    """What a checkpoint says of its training.

    Attributes:
        epoch: Epochs done.
        best: Best top-1 in percent, 0 where unknown.
        history: A line of log.txt per epoch.
        training: As `save_probe` was given; empty in DINO's files.
    """

    epoch: int
    best: float
    history: list[dict[str, float]]
    training: dict[str, Any]


def save_probe(
    folder: Path,
    probe: LinearProbe,
    optimizer: torch.optim.SGD,
    epoch: int,
    best: float,
    features: Mapping[str, Any],
    training: Mapping[str, Any],
    history: list[dict[str, float]],
) -> None:
    """Write the checkpoint and, from its history, log.txt, both atomically; in the main process only.

    Args:
        folder: Of the run; must exist.
        probe: The classifier.
        optimizer: Its optimizer.
        epoch: The epoch just finished, from 0.
        best: Best top-1 so far, in percent.
        features: What the classifier reads, plain values.
        training: How it is trained, plain values.
        history: A line of log.txt per epoch.

    Raises:
        FloatingPointError: A weight is NaN or infinite; earlier files are untouched.
        OSError: A file cannot be written; earlier files are untouched.
    """
    weights = probe.state_dict()
    check_finite(weights)
    checkpoint = {
        "epoch": epoch + 1,
        "state_dict": {_DDP + name: tensor for name, tensor in weights.items()},
        "optimizer": optimizer.state_dict(),
        "best_acc": best,
        "features": dict(features),
        "training": dict(training),
        "history": history,
    }
    save_checkpoint(folder / CHECKPOINT, checkpoint)
    with atomic_file(folder / "log.txt") as file:
        file.write("".join(json.dumps(line) + "\n" for line in history).encode())


def load_probe(folder: Path, probe: LinearProbe, optimizer: torch.optim.SGD, features: Mapping[str, Any]) -> ProbeState:
    """Read a checkpoint of ours or of DINO's.

    Args:
        folder: Of the run.
        probe: Changed in place.
        optimizer: Changed in place, where the file has an optimizer's state.
        features: What the classifier will read.

    Returns:
        What it says of its training.

    Raises:
        FileNotFoundError: No checkpoint.
        ValueError: Damaged, or of a classifier of something else; the message says in what they differ.
    """
    path = folder / CHECKPOINT
    content = read_checkpoint(path)
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} is no linear classifier: it holds {', '.join(map(str, content))}")
    stored = content.get("features", {})
    different = [
        f"{name} {stored[name]} there, {features[name]} here" for name in stored if stored[name] != features[name]
    ]
    if different:
        raise ValueError(
            f"{path} reads other features: {'; '.join(different)}. Give the flags that it was trained with, or another "
            "--output_dir"
        )
    try:
        load_strict(probe, {name.removeprefix(_DDP): tensor for name, tensor in weights.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "optimizer" in content:
        optimizer.load_state_dict(content["optimizer"])
    return ProbeState(
        int(content.get("epoch", 0)),
        float(content.get("best_acc", 0.0)),
        list(content.get("history", [])),
        dict(content.get("training", {})),
    )
