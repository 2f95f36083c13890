"""Around one epoch of open_clip_train: every batch counted, every loss finite, every skip reported."""

import argparse
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from clip_train_skips import SkipCounter, describe_skips
from torch import Tensor

from last_vit.late_scalars import LateScalars
from last_vit.runtime import all_reduce_sum, is_main_process


class WatchedLoss:
    """open_clip's loss that stops the run when it is not finite.

    Each value is looked at when the next one has been started, and the last one by `check`: see `LateScalars`.

    Args:
        loss: Takes open_clip's output, returns a dict of terms.
        epoch: For the message.
        accum_freq: Calls per step of the optimizer (open_clip computes each part of a step once).
        hint: What the user can do.
    """

    def __init__(self, loss: Callable[..., dict[str, Tensor]], epoch: int, accum_freq: int, hint: str) -> None:
        self._loss = loss
        self._epoch = epoch
        self._accum_freq = accum_freq
        self._hint = hint
        self._num_calls = 0
        self._pending: Mapping[str, float] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As the loss; raises for the loss of the call before, see `check`."""
        terms = self._loss(*args, **kwargs)
        self.check()
        self._pending = LateScalars(tuple(terms), torch.stack([term.detach().float() for term in terms.values()]))
        self._num_calls += 1
        return terms

    def check(self) -> None:
        """Look at the last loss.

        Raises:
            FloatingPointError: It is NaN or infinite; names the term, the epoch and the step.
        """
        for name, value in self._pending.items():
            if not math.isfinite(value):
                step = (self._num_calls - 1) // self._accum_freq
                raise FloatingPointError(f"{name} is {value} in epoch {self._epoch}, step {step}; {self._hint}")


class CountedBatches:
    """A loader as open_clip_train reads it, which counts the batches that it gives."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_batches = loader.num_batches
        self.num_samples = loader.num_samples
        self.num_given = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.num_given += 1
            yield batch


def guard_epoch(train_one_epoch: Callable[..., None], skips: SkipCounter) -> Callable[..., None]:
    """`open_clip_train.train.train_one_epoch` that cannot fail in silence.

    Args:
        train_one_epoch: The original.
        skips: Of the training data; reported after each epoch.

    Returns:
        A function with the same arguments, which raises ValueError for an epoch without a step, or with fewer batches
        than planned, and FloatingPointError for a loss that is not finite.
    """

    @functools.wraps(train_one_epoch)
    def run(
        model: torch.nn.Module, data: dict[str, Any], loss: Any, epoch: int, *rest: Any, tb_writer: Any = None
    ) -> None:
        args: argparse.Namespace = rest[-1]
        hint = (
            f"the run stops, checkpoints of earlier epochs are in {args.checkpoint_path}. A lower --lr, a longer "
            f"--warmup, --grad-clip-norm 1.0 or --precision amp_bf16 can help; go on with --resume latest"
        )
        batches = CountedBatches(data["train"].dataloader)
        if batches.num_batches < args.accum_freq:
            raise ValueError(
                f"{batches.num_samples} training samples are less than one step of {args.batch_size} x "
                f"{args.world_size} processes x {args.accum_freq} (--accum-freq); lower --batch-size"
            )
        watched = WatchedLoss(loss, epoch, args.accum_freq, hint)
        watched_data = {**data, "train": replace(data["train"], dataloader=batches)}
        train_one_epoch(model, watched_data, watched, epoch, *rest, tb_writer=tb_writer)
        watched.check()
        own = skips.take()
        if batches.num_given < batches.num_batches:
            raise ValueError(
                f"epoch {epoch} had {batches.num_given} of its {batches.num_batches} batches, after "
                f"{describe_skips(own)}: a loading process found nothing to load; check --train-data, and that "
                f"--train-num-samples is not more than there is"
            )
        _report(epoch, "training", all_reduce_sum(torch.tensor(own)).tolist())

    return run


def report_evaluation(evaluate: Callable[..., dict], skips: SkipCounter) -> Callable[..., dict]:
    """`open_clip_train.train.evaluate`, which runs in the main process alone, and what it skipped.

    Args:
        evaluate: The original.
        skips: Of the validation data.
    """

    @functools.wraps(evaluate)
    def run(model: torch.nn.Module, data: dict[str, Any], epoch: int, *rest: Any, **named: Any) -> dict:
        metrics = evaluate(model, data, epoch, *rest, **named)
        if "val" in data and is_main_process():
            _report(epoch, "validation", skips.take())
        return metrics

    return run


def _report(epoch: int, what: str, counts: list[int]) -> None:
    if is_main_process():
        logging.log(
            logging.WARNING if any(counts) else logging.INFO, f"Epoch {epoch}, {what}: {describe_skips(counts)}"
        )
