"""Losses of a step, read without making the device wait.

`tensor.item()` waits for everything that a GPU was given before it, so a loss that is looked at in every step leaves
the GPU idle while Python starts the next one. Here the values are copied to the host behind the work that makes them,
and a look waits for that copy alone: one step later it is there already.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class LateScalars(Mapping[str, float]):
    """Named numbers that a device may still be computing; the first look waits for them and for nothing later.

    Args:
        names: One per value.
        values: [len(names)], any dtype and device; may be changed afterwards.

    Raises:
        ValueError: Another number of names than of values.

    Example:
        >>> dict(LateScalars(("loss", "norm"), torch.tensor([0.5, 2.0])))
        {'loss': 0.5, 'norm': 2.0}
    """

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        if values.shape != (len(names),):
            raise ValueError(f"{len(names)} names ({', '.join(names)}) for values of shape {tuple(values.shape)}")
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
