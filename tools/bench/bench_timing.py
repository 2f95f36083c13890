"""What the benches share: functions timed in turn, ratios with their spread, peak memory. Imported by benches only.

On a CPU a bench compares medians from one run: a machine's speed drifts, but it drifts for both sides alike when they
take turns.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter; read when torch is imported

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ratio:
    """How many times as much one side takes as the other.

    Attributes:
        median: Median of the one side over the median of the other.
        low: Smallest ratio within one round.
        high: Largest ratio within one round.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"

    def times(self, factor: float) -> "Ratio":
        """The same in another unit: 100 for percent, the images of a batch for a rate per image."""
        return Ratio(factor * self.median, factor * self.low, factor * self.high)


def wait(device: torch.device) -> None:
    """Let a GPU finish what a clock is to count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device = CPU,
    calls: int = 1,
    warm_calls: int = 0,
) -> dict[str, list[float]]:
    """Seconds per call of each function, called in turn; a first round, which warms up, does not count.

    Every round has an order of its own, so that no side always follows the one that leaves caches and memory worst.

    The clock is this process's CPU time where one CPU thread does all the work (other processes then cost nothing), and
    the wall's otherwise.

    Args:
        functions: What to time, by name.
        rounds: Timed turns of each function.
        device: Where the work happens.
        calls: Calls per turn; more than one for work of less than a millisecond.
        warm_calls: Calls before the clock starts, in every turn: for sides of a few milliseconds, which are up to a
            quarter slower in the memory that another side left behind than by themselves.

    Returns:
        `rounds` values for every name.
    """
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    shuffle, sides = torch.Generator().manual_seed(0), list(functions.items())
    for turn in range(rounds + 1):
        for side in torch.randperm(len(sides), generator=shuffle):
            name, function = sides[side]
            for _ in range(warm_calls):
                function()
            wait(device)
            start = clock()
            for _ in range(calls):
                function()
            wait(device)
            if turn:
                times[name].append((clock() - start) / calls)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """`over` / `under`, two sides of one `alternate` run, round by round."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(over) / statistics.median(under), min(each), max(each))


def peak_bytes(function: Callable[[], object], device: torch.device = CPU) -> tuple[int, int]:
    """(peak, remaining) bytes that torch holds during a call beyond what it held before, its result still alive."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        wait(device)
        peak, now = (read(device) - before for read in (torch.cuda.max_memory_allocated, torch.cuda.memory_allocated))
        del result
        return peak, now
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    del result
    return peak, now
