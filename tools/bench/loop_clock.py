"""Where the time of an evaluation's loop goes: its model, its input, and the rest. Imported by benches only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from bench_timing import wait
from torch.utils.data import DataLoader

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class LoopTimes:
    """Seconds of one pass.

    Attributes:
        total: From its first line to its last, metrics computed.
        model: Inside the model's forward pass.
        input: Waiting for the next batch, and for the loader to start and end. Without workers that is all of reading,
            decoding and transforming; with them what they do not keep up with.
    """

    total: float
    model: float
    input: float

    @property
    def rest(self) -> float:
        """Copies to the device, scoring, labels, boxes, counting, matching."""
        return self.total - self.model - self.input


class LoopClock:
    """Splits the time of whatever reads a `DataLoader` and calls a model.

    Args:
        device: Whose work counts.
        clock: Seconds; `time.process_time` costs other processes nothing, but sees neither waiting nor workers.
        splits: Let a GPU finish at every border between the parts. Without this its work is counted wherever the CPU
            next waits for it, and the loop is not slowed down: only the total means anything.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter, splits: bool = True
    ) -> None:
        self._device, self._clock, self._splits = device, clock, splits
        self._seconds = {"model": 0.0, "input": 0.0}

    def time(self, run: Callable[[Wrap], object]) -> LoopTimes:
        """One pass.

        Args:
            run: Does it, with its model's forward function wrapped by what it is given.
        """
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        original = DataLoader.__iter__
        with patch.object(DataLoader, "__iter__", lambda loader: self._batches(original, loader)):
            wait(self._device)
            start = self._clock()
            run(self._timed_model)
            wait(self._device)
            total = self._clock() - start
        return LoopTimes(total, **self._seconds)

    def _timed_model(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._part("model"):
                return forward(*args, **kwargs)

        return timed

    def _batches(self, original: Callable[[DataLoader], Iterator[Any]], loader: DataLoader) -> Iterator[Any]:
        with self._part("input"):
            batches, end = original(loader), object()
        while True:
            with self._part("input"):
                batch = next(batches, end)
            if batch is end:
                return
            yield batch

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        if self._splits:
            wait(self._device)
        start = self._clock()
        yield
        if self._splits:
            wait(self._device)
        self._seconds[name] += self._clock() - start
