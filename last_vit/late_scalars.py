"""Numbers that a device still computes, looked at one step late; and the vote of all processes on whether to stop.

A GPU computes while Python goes on, and `tensor.item()` would wait for all that was started before it.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from last_vit.runtime import all_reduce_sum, world_size
from last_vit.stopping import stop_signal


class LateScalars(Mapping[str, float]):
    """Named numbers that a device may still be computing; the first look waits for them and for nothing later.

    Values are [len(names)], of any dtype and device; copied, so they may be changed afterwards.
    """

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # others block the copy
            self._values = host.copy_(values.detach(), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.detach().clone()

    def __getitem__(self, name: str) -> float:
        place = self._places[name]
        if self._copied is not None:
            self._copied.synchronize()
        return self._values[place].item()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class StopVote:
    """Whether any process was asked to stop, with the same answer in all of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: LateScalars | None = None

    def __call__(self) -> bool:
        """The answer at a step border, in every process; several learn it one step late, so that no device waits."""
        is_asked = stop_signal() != 0
        if world_size() == 1:
            return is_asked
        before, votes = self._before, all_reduce_sum(torch.full((1,), float(is_asked), device=self._device))
        self._before = LateScalars(("votes",), votes)
        return before is not None and before["votes"] > 0
