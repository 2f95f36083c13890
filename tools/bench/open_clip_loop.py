"""What open_clip_train's loop wants beside a model: a loader and its arguments. Imported by benches only."""

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

NO_SCALER = NO_SCHEDULER = NO_TEACHER = None


class Repeated:
    """A loader that gives one batch, `count` times."""

    def __init__(self, batch: tuple[Tensor, Tensor], count: int = 1) -> None:
        self._batch = batch
        self.num_batches, self.num_samples = count, count * len(batch[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self._batch, self.num_batches)


def loop_arguments(device: torch.device, precision: str, batch: int) -> argparse.Namespace:
    """Those that the loop reads, as open_clip_train's own command line would set them.

    Args:
        device: Where to train.
        precision: As --precision.
        batch: Pairs per step.
    """
    return argparse.Namespace(
        device=str(device),
        precision=precision,
        accum_freq=1,
        skip_scheduler=True,
        distill=False,
        horovod=False,
        grad_clip_norm=1.0,
        rank=0,
        world_size=1,
        log_every_n_steps=1000,
        batch_size=batch,
        wandb=False,
        checkpoint_path="",
    )
