"""The streaming half of every metric here: sums that add up over batches and processes.

They stay on the device of the batches, so updating never waits for a GPU; they are float64, exact for counts below
2**53 and so independent of how a data set is split.
"""

import math

import torch
from torch import Tensor

from last_vit.runtime import all_reduce_sum


class SummedTensors:
    """Named tensors, each of a fixed shape (histograms, maps, counts), summed over batches and processes.

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
        """Add one tensor (any real dtype) to every sum; ValueError for other names or shapes than the declared ones."""
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


class SummedCounters(SummedTensors):
    """`SummedTensors` of scalars, whose totals are numbers."""

    def __init__(self, *names: str) -> None:
        super().__init__(**dict.fromkeys(names, ()))

    def totals(self) -> dict[str, float]:
        """Sums over all processes so far; every process must call this together and gets the same answer."""
        return {name: float(total) for name, total in super().totals().items()}
