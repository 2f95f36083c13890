"""The lengths of a detector's run: epochs and images, as the config has them, in iterations of this run.

An iteration is of F-ViT's 64 images (`train.lr_batch_size`) on any number of GPUs: each process takes several batches
of `dataloader.train.batch_size` where there are fewer than 8, and adds up their gradients. Only the norms' statistics
are of single batches. `train.accumulate` is that number of batches, where a config says it.

    train.epochs          train.max_iter
    train.lr_steps        lr_multiplier.scheduler.milestones
    train.warmup_images   lr_multiplier.warmup_length, a share of the run
    train.eval_epochs     train.eval_period
    train.checkpoint_epochs  train.checkpointer.period

What stands on the right is in iterations; it is worked out from what stands on the left, or taken where it is given.
An epoch has the images of the training set rounded up to whole iterations, as in mmdet.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from last_vit.train_lib import logger


class BatchGroups:
    """A training loader of which every `size` batches are one iteration: each item is their list."""

    def __init__(self, loader: DataLoader, size: int) -> None:
        self.loader, self.size = loader, size
        self.start_iteration = 0
        self.batch_sampler = self  # who resumes a run sets its start_iteration

    def __iter__(self) -> Iterator[list[Any]]:
        self.loader.batch_sampler.start_iteration = self.start_iteration * self.size
        batches = iter(self.loader)
        while True:
            yield [next(batches) for _ in range(self.size)]


def plan_run(cfg: Any, num_images: int, num_processes: int) -> tuple[int, int]:
    """Work out a config's lengths in iterations, in place, and log them.

    Returns batches per iteration and process, and iterations per epoch. ValueError for a length that is not positive;
    train.eval_epochs may be 0, for no evaluation before the end.
    """
    train, per_process = cfg.train, cfg.dataloader.train.batch_size
    accumulate = train.get("accumulate") or max(1, round(train.lr_batch_size / (per_process * num_processes)))
    images = per_process * num_processes * accumulate
    epoch = math.ceil(num_images / images)

    def iterations(name: str, smallest: int = 1) -> int:
        if train[name] < 0 or (smallest and train[name] == 0) or not math.isfinite(train[name]):
            raise ValueError(f"train.{name} must be {'positive' if smallest else '0 or more'}, got {train[name]}")
        return max(1, round(train[name] * epoch)) if train[name] else 0

    if train.max_iter is None:
        train.max_iter = iterations("epochs")
    if train.eval_period is None:
        train.eval_period = iterations("eval_epochs", smallest=0)
    if train.checkpointer.period is None:
        train.checkpointer.period = iterations("checkpoint_epochs")
    steps = cfg.lr_multiplier.get("scheduler", {})
    if "milestones" in steps and steps.milestones is None:
        steps.milestones = [at for at in (round(step * epoch) for step in train.lr_steps) if at < train.max_iter]
        steps["values"] = steps["values"][: len(steps.milestones) + 1]
    if "warmup_length" in cfg.lr_multiplier and cfg.lr_multiplier.warmup_length is None:
        cfg.lr_multiplier.warmup_length = min(1.0, train.warmup_images / (images * train.max_iter))
    logger.info(
        "%.4g epochs of %d images are %d iterations of %d (%d processes x %d batches x %d); in epochs and iterations, "
        "evaluation is every %.4g = %d, a checkpoint every %.4g = %d",
        *(train.max_iter / epoch, num_images, train.max_iter, images, num_processes, accumulate, per_process),
        *(train.eval_period / epoch, train.eval_period),
        *(train.checkpointer.period / epoch, train.checkpointer.period),
    )
    return accumulate, epoch
