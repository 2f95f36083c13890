"""What every bench shares: sides timed in turn, ratios with spread and goal, the record. Run by run_all.py.

A bench is a module with a function:

def bench(report: BenchReport) -> None:
    report.describe("ViT-S/16, random images", dataset="random images, 224 px", n_images=4)
    times = alternate({"plain": ..., "ours": ...}, report.size(2, 5), report.device)
    report.add("speedup", "step against a plain one", ratio(times["plain"], times["ours"]), goal=1.3)

On a CPU a bench compares medians from one run: a machine's speed drifts, but it drifts for both sides alike when they
take turns.
"""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter; read when torch is imported

import torch
from speed_ratios import SPEED_TABLE, SpeedRatio

from last_vit.results import write_result
from last_vit.runtime import describe_device, seed_everything

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ratio:
    """How many times as much one side takes as the other: of medians, and the smallest and largest of one round."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Ratio":
        """The same in another unit: 100 for percent, the images of a batch for a rate per image."""
        return Ratio(factor * self.median, factor * self.low, factor * self.high)


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """`over` / `under`, two sides of one `alternate` run, round by round."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(over) / statistics.median(under), min(each), max(each))


def alternate(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device = CPU,
    warm_calls: int = 0,
) -> dict[str, list[float]]:
    """`rounds` times in seconds of each function, called in turn; a first round, which warms up, does not count.

    Every round has an order of its own, so that no side always follows the one that leaves caches and memory worst. The
    clock is this process's CPU time where one CPU thread does all the work (other processes then cost nothing), and the
    wall's otherwise. `warm_calls` precede the clock in every turn: sides of a few milliseconds are up to a quarter
    slower in the memory that another side left behind than by themselves.
    """
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in functions}
    shuffle, sides = torch.Generator().manual_seed(0), list(functions.items())
    for turn in range(rounds + 1):
        for side in torch.randperm(len(sides), generator=shuffle):
            name, function = sides[side]
            for _ in range(warm_calls):
                function()
            wait()
            start = clock()
            function()
            wait()
            if turn:
                times[name].append(clock() - start)
    return times


def peak_bytes(function: Callable[[], object], device: torch.device = CPU) -> int:
    """Bytes that torch holds at most during a call beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


class BenchReport:
    """What one bench measures, on `device`: printed as it comes, written once at the end.

    With `recorded` sizes are those that the goals name, and it is written to results/<name>.json.
    """

    def __init__(self, name: str, device: torch.device, recorded: bool) -> None:
        torch.set_num_threads(1)
        seed_everything(0)
        self.device = device
        self._name, self._recorded, self._start = name, recorded, time.perf_counter()
        self._metrics: dict[str, float] = {}
        self._quantities: dict[str, dict[str, str]] = {}
        self._described: dict[str, Any] = {}

    def size(self, quick: int, recorded: int, on_gpu: int | None = None) -> int:
        """A number that is small for a look, the goal's where a record is written, and another one on a GPU."""
        if self.device.type == "cuda" and on_gpu is not None:
            return on_gpu
        return recorded if self._recorded else quick

    def describe(self, words: str, *, dataset: str, n_images: int) -> None:
        """Print what is measured and keep it for the record; once, before the first ratio."""
        print(f"{words}; {describe_device(self.device)}")
        self._described = {"dataset": dataset, "n_images": n_images}

    def add(
        self,
        name: str,
        words: str,
        measured: Ratio | float,
        goal: float | None = None,
        limit: float | None = None,
        unit: str = "x",
    ) -> None:
        """Print a ratio beside its goal (at least) or limit (at most), and keep it for the record and docs/speed.md.

        As in speed_ratios.py; a number alone is one without spread, such as a count of bytes.
        """
        spread = measured if isinstance(measured, Ratio) else Ratio(measured, measured, measured)
        each = SpeedRatio(name, words, *astuple(spread), goal if limit is None else limit, limit is not None, unit)
        self._metrics |= {name: each.median, f"{name}_low": each.low, f"{name}_high": each.high}
        self._quantities[name] = {"words": words, "unit": unit}
        verdict = ""
        if each.goal is not None:
            self._metrics[f"{name}_{'limit' if each.is_limit else 'goal'}"] = each.goal
            verdict = f"   {each.goal_words()}: {'met' if each.is_met else 'MISSED'}"
        median, low, high = map(each.with_unit, astuple(spread))
        print(f"  {words:<68} {median:>12} ({low} to {high}){verdict}", flush=True)

    def finish(self) -> None:
        """Write the record where one is asked for."""
        if not self._recorded:
            return
        write_result(
            self._name + ("_cuda" if self.device.type == "cuda" else ""),
            self._metrics,
            **self._described,
            config={"quantities": self._quantities, "processor": processor(), "torch": torch.__version__},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - self._start,
            device=self.device,
            table=SPEED_TABLE,
            row=self._name,
        )


def processor() -> str:
    """The CPU in words, as Linux calls it; elsewhere its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
