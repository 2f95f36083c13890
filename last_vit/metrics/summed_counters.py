"""The streaming half of every metric here: a few counters that add up over batches and processes.

Counters stay on the device of the batches, so updating never waits for a GPU; they are float64, exact for counts below
2**53 and so independent of how a data set is split.
"""

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
