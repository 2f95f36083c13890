"""DataLoaders for training and evaluation, for any data set of this package; what the LazyConfigs call.

Rank and world size come from the process group, so build loaders after it is up.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from last_vit.data.position_sampler import PositionSampler, SeededSamples
from last_vit.runtime import rank, world_size


def build_train_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    seed: int = 0,
    start_iteration: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Endless loader in the order of `PositionSampler`; iterating draws nothing from the global random state.

    Args:
        dataset: Map-style data set, the same in every process.
        batch_size: Samples per iteration and process.
        num_workers: Loading processes; the batches do not depend on it.
        seed: Of order and augmentation, the same in every process.
        start_iteration: First iteration to load. To resume, set `loader.batch_sampler.start_iteration` before `iter`.
        collate: Samples -> batch; None stacks them, as torch does.

    Returns:
        Loader of collated samples, without a length.

    Raises:
        ValueError: A batch size that is not positive, a negative seed or iteration, an empty data set.
    """
    return DataLoader(
        SeededSamples(dataset, seed),
        batch_sampler=PositionSampler(batch_size, rank(), world_size(), start_iteration),
        generator=torch.Generator().manual_seed(seed),
        collate_fn=collate,
        **_worker_options(num_workers),
    )


def build_test_loader(
    dataset: Dataset, batch_size: int, num_workers: int, collate: Callable[[list[Any]], Any] | None = None
) -> DataLoader:
    """Loader over this process's share of a data set: every sample in exactly one process, in order, none repeated.

    The shares are contiguous and differ by at most one sample, so the numbers of batches may differ between processes:
    reduce counters after the loop, not in it.

    Args:
        dataset: Map-style data set, the same in every process.
        batch_size: Samples per batch and process; the last batch may be smaller.
        num_workers: Loading processes.
        collate: As in `build_train_loader`.

    Returns:
        Loader of collated samples; empty where there are more processes than samples.
    """
    return DataLoader(
        Subset(dataset, process_share(len(dataset), rank())),
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
        collate_fn=collate,
        **_worker_options(num_workers),
    )


def process_share(length: int, process: int) -> range:
    """The samples of a data set of `length` that `build_test_loader` gives to a process in [0, world size)."""
    return range(length * process // world_size(), length * (process + 1) // world_size())


def _worker_options(num_workers: int) -> dict[str, int | bool]:
    return {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
