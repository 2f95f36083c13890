"""DataLoaders for training and evaluation, for any data set of this package; what the LazyConfigs call.

Rank and world size come from the process group, so build loaders after it is up.

Training visits the positions 0, 1, 2, ... without end, in an order that is a function of (seed, position) alone, so
that a killed run resumes bit-identically. Position p is the sample `permutation(seed, epoch)[p % n]` of epoch `p // n`,
and the random numbers of its augmentation depend on (seed, p). Which worker or process loads it, and how many there
are, changes nothing; starting at iteration k gives what a run from 0 sees from iteration k on. The permutation comes
from numpy's generator and the augmentation from torch's CPU generator and Python's `random`, so the order holds for one
version of them. A transform that draws from numpy's global generator is not covered.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from last_vit.runtime import rank, world_size


class PositionSampler(Sampler[list[int]]):
    """Endless batch sampler: iteration i of this process reads positions i * global + rank * batch_size onwards.

    The global batch is `batch_size * world_size`. `start_iteration`, the first of the next pass over the sampler, is
    also an attribute, for resuming.

    Example:
        >>> batches = iter(PositionSampler(batch_size=2, rank=1, world_size=2))
        >>> next(batches), next(batches)
        ([2, 3], [6, 7])
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, start_iteration: int = 0) -> None:
        if batch_size < 1 or start_iteration < 0:
            raise ValueError(
                f"batch_size must be positive and start_iteration not negative, got {batch_size} and {start_iteration}"
            )
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[int]]:
        global_batch = self.batch_size * self.world_size
        first = self.start_iteration * global_batch + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += global_batch


class SeededSamples(Dataset):
    """View of a map-style data set by position: shuffled anew each epoch, augmented with random numbers of its own.

    Without a length, for positions have no end. The process's own random state is as before after each sample. Runs
    that differ in `seed` (not negative) differ in order and augmentation.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if len(dataset) < 1:
            raise ValueError(f"cannot train on an empty data set: {dataset!r}")
        self.dataset, self.seed = dataset, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> Any:
        with _own_random_numbers(self.seed, position):
            return self.dataset[self.index_at(position)]

    def index_at(self, position: int) -> int:
        """The data set's index at a position >= 0 of the training order."""
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
            self._epoch = epoch
        return int(self._permutation[offset])


def build_train_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    seed: int = 0,
    start_iteration: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Endless loader in the order of `PositionSampler`; iterating draws nothing from the global random state.

    `dataset` and `seed` are the same in every process, `batch_size` is per process, and batches do not depend on
    `num_workers`. To resume, set `loader.batch_sampler.start_iteration` before `iter`. `collate` None stacks samples.
    """
    return DataLoader(
        SeededSamples(dataset, seed),
        batch_sampler=PositionSampler(batch_size, rank(), world_size(), start_iteration),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        collate_fn=collate,
    )


def build_test_loader(
    dataset: Dataset, batch_size: int, num_workers: int, collate: Callable[[list[Any]], Any] | None = None
) -> DataLoader:
    """Loader over this process's share of a data set: every sample in exactly one process, in order, none repeated.

    The numbers of batches may differ between processes (there may be none in some): reduce counters after the loop, not
    in it. The last batch may be smaller than `batch_size`. Arguments as in `build_train_loader`.
    """
    return DataLoader(
        Subset(dataset, process_share(len(dataset), rank())),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        collate_fn=collate,
    )


def process_share(length: int, process: int) -> range:
    """The samples of `length` that go to a process in [0, world size): contiguous shares that differ by at most one."""
    return range(length * process // world_size(), length * (process + 1) // world_size())


@contextmanager
def _own_random_numbers(seed: int, position: int) -> Iterator[None]:
    """Seed torch's CPU generator and `random` from (seed, position) for the block, then put back their states.

    Not `torch.manual_seed`: that seeds the GPUs too, whose state the model's dropout needs undisturbed.
    """
    torch_seed, python_seed = np.random.SeedSequence([seed, position, 1]).generate_state(2, np.uint64).tolist()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(torch_seed)
        random.seed(python_seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
