"""The streaming half of every metric here: sums that add up over batches and processes.

`SummedCounters` is for scalars, `SummedTensors` for histograms and maps. Both stay on the device of the batches, so
updating never waits for a GPU; they are float64, exact for counts below 2**53 and so independent of how a data set is
split.
"""

import math

import torch
from torch import Tensor

from last_vit.runtime import all_reduce_sum


class SummedCounters:
    """Named sums over batches and processes.

    Args:
        names: One name per counter.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._sums: Tensor | None = None

    def add(self, **amounts: Tensor) -> None:
        """Add one scalar tensor (any real dtype) to every counter; the names must be exactly the declared ones."""
        stacked = torch.stack([amounts[name].detach().double() for name in self._names])
        self._sums = stacked if self._sums is None else self._sums + stacked

    def totals(self) -> dict[str, float]:
        """Sums over all processes so far; every process must call this together and gets the same answer."""
        local = torch.zeros(len(self._names), dtype=torch.float64) if self._sums is None else self._sums
        return dict(zip(self._names, all_reduce_sum(local).tolist(), strict=True))


class SummedTensors:
    """Named tensors, each of a fixed shape, summed over batches and processes.

    Args:
        shapes: name -> shape.

    Example:
        >>> sums = SummedTensors(histogram=(3,), num_images=())
        >>> sums.add(histogram=torch.tensor([1, 0, 2]), num_images=torch.tensor(1))
        >>> sums.totals()["histogram"]
        tensor([1., 0., 2.], dtype=torch.float64)
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._shapes = shapes
        self._sums: Tensor | None = None

    def add(self, **amounts: Tensor) -> None:
        """Add one tensor (any real dtype, of the declared shape) to every sum; the names must be the declared ones.

        Raises:
            ValueError: Other names or shapes.
        """
        found = {name: tuple(amount.shape) for name, amount in amounts.items()}
        if found != self._shapes:
            raise ValueError(f"sums of {self._shapes} were given {found}")
        flat = torch.cat([amounts[name].detach().double().reshape(-1) for name in self._shapes])
        self._sums = flat if self._sums is None else self._sums + flat

    def totals(self) -> dict[str, Tensor]:
        """Sums over all processes so far, float64 on the CPU; every process must call this together."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        local = torch.zeros(sum(sizes), dtype=torch.float64) if self._sums is None else self._sums
        parts = all_reduce_sum(local).cpu().split(sizes)
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
