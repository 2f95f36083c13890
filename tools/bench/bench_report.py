"""What every bench's command line shares: flags, lines that say whether a goal is met, the record. Imported by benches.

def bench(args, report):
    report.describe("ViT-S/16, random images", dataset="random images, 224 px", n_images=args.batch)
    times = alternate({"plain": ..., "ours": ...}, args.rounds, report.device)
    report.add("speedup", "step against a plain one", ratio(times["plain"], times["ours"]), goal=1.3)

def main(argv=None):
    parser = BenchParser("bench_name", __doc__, rounds=5)
    parser.add_size("--batch", 1, 4, "images per step")
    run_bench(parser, bench, argv)
"""

import argparse
import logging
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_timing import Ratio
from speed_results import SPEED_TABLE, SpeedRatio, speed_entries

from last_vit.command_line import positive, run_command_line
from last_vit.results import write_result
from last_vit.runtime import describe_device, seed_everything, select_device


class BenchParser(argparse.ArgumentParser):
    """The flags of every bench: --device, --rounds, --threads, --record; and sizes that --record raises to the goal's.

    Args:
        name: The bench's file name without ".py"; also of its record.
        doc: Its docstring, the head of its help.
        rounds: Timed turns of each side.
        recorded_rounds: The same with --record; None for no difference.
        has_gpu_side: False for work that no GPU does.
    """

    def __init__(
        self, name: str, doc: str, rounds: int, recorded_rounds: int | None = None, has_gpu_side: bool = True
    ) -> None:
        super().__init__(prog=f"{name}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.name = name
        self._sizes: dict[str, tuple[int, int, int | None]] = {}
        self._goal_sizes: dict[str, tuple[str, int]] = {}
        devices = "auto, cpu, cuda or cuda:<index> (default auto)" if has_gpu_side else "cpu, whatever the machine has"
        default, choices = ("auto", None) if has_gpu_side else ("cpu", ("cpu",))
        self.add_argument("--device", default=default, choices=choices, help=devices)
        self.add_size("--rounds", rounds, recorded_rounds or rounds, "timed turns of each side")
        self.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
        self.add_argument(
            "--record", action="store_true", help=f"write results/{name}.json (on a GPU {name}_cuda.json)"
        )

    def add_size(
        self, flag: str, quick: int, recorded: int, text: str, on_gpu: int | None = None, for_goal: bool = False
    ) -> None:
        """A number whose default lets `make bench` be short, and is the one that the goal names with --record.

        Args:
            flag: With its dashes.
            quick: Default without --record.
            recorded: Default with it.
            text: For the help.
            on_gpu: Default on a GPU, with and without --record; None for no other.
            for_goal: The ratio is another one at smaller sizes, where goals are then not judged.
        """
        default = f"default {quick}" if quick == recorded else f"default {quick}, with --record {recorded}"
        default += "" if on_gpu is None else f", on a GPU {on_gpu}"
        action = self.add_argument(flag, type=positive, help=f"{text} ({default})")
        self._sizes[action.dest] = (quick, recorded, on_gpu)
        if for_goal:
            self._goal_sizes[action.dest] = (flag, recorded)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse's; sizes that were not given get their defaults."""
        parsed = super().parse_args(args, namespace)
        try:
            is_gpu = select_device(parsed.device).type == "cuda"
        except ValueError as error:
            self.error(str(error))
        for name, (quick, recorded, on_gpu) in self._sizes.items():
            if getattr(parsed, name) is None:
                usual = recorded if parsed.record else quick
                setattr(parsed, name, on_gpu if is_gpu and on_gpu is not None else usual)
        return parsed

    def goal_sizes(self, args: argparse.Namespace) -> str:
        """The flags that a run lacks for its goals to be judged; empty when they can be."""
        is_small = any(getattr(args, name) < recorded for name, (_, recorded) in self._goal_sizes.items())
        return " ".join(f"{flag} {recorded}" for flag, recorded in self._goal_sizes.values()) if is_small else ""


class BenchReport:
    """What one run measures: printed as it comes, written once at the end.

    Args:
        name: Of the bench.
        args: From its parser.
        goal_sizes: As `BenchParser.goal_sizes`.

    Attributes:
        device: Where to measure; --device.
        ratios: What was added so far.
    """

    def __init__(self, name: str, args: argparse.Namespace, goal_sizes: str = "") -> None:
        torch.set_num_threads(args.threads)
        seed_everything(0)
        self.device = select_device(args.device)
        self.ratios: list[SpeedRatio] = []
        self._name, self._args, self._goal_sizes = name, args, goal_sizes
        self._numbers: dict[str, float] = {}
        self._described: dict[str, Any] = {}
        self._start = time.perf_counter()

    def describe(self, words: str, *, dataset: str, n_images: int, **config: Any) -> None:
        """Print what is measured; once, before the first ratio.

        Args:
            words: Model and sizes, for the first line.
            dataset: As in `last_vit.results.ResultRecord`.
            n_images: Images of one turn, or whatever is counted in their place.
            **config: Settings that no flag holds.
        """
        print(f"{words}; {describe_device(self.device)}")
        self._described = {"dataset": dataset, "n_images": n_images, "config": config}

    def add(
        self,
        name: str,
        words: str,
        measured: Ratio | float,
        goal: float | None = None,
        limit: float | None = None,
        unit: str = "x",
    ) -> None:
        """Print a ratio beside its goal and keep it for the record and README's speed table.

        Args:
            name: As in `SpeedRatio`.
            words: What was compared, without the number.
            measured: A number alone is one without spread, such as a count of bytes.
            goal: What it should reach at least.
            limit: What it should be at most; not together with `goal`.
            unit: As in `SpeedRatio`.
        """
        spread = measured if isinstance(measured, Ratio) else Ratio(measured, measured, measured)
        bound = goal if limit is None else limit
        one = SpeedRatio(name, words, spread.median, spread.low, spread.high, bound, limit is not None, unit)
        judged = f"judged with {self._goal_sizes}" if self._goal_sizes else ""
        verdict = f"   goal {one.goal_words()}: {judged or one.verdict()}" if bound is not None else ""
        print(f"  {words:<62} {one!s:<24}{verdict}".rstrip(), flush=True)
        if self._goal_sizes:
            one = replace(one, goal=None)
        self.ratios.append(one)

    def keep(self, **numbers: float) -> None:
        """Numbers for the record alone, beside the ratios: bytes, times and rates."""
        self._numbers |= numbers

    def finish(self) -> None:
        """Write the record where --record asks for it."""
        if not self._args.record:
            return
        torch.set_num_threads(self._args.threads)  # which the record names; a part of the bench may have changed it
        metrics, quantities = speed_entries(self.ratios)
        flags = {name: value for name, value in vars(self._args).items() if name not in ("device", "record")}
        write_result(
            self._name + ("_cuda" if self.device.type == "cuda" else ""),
            {**metrics, **self._numbers},
            n_images=self._described["n_images"],
            dataset=self._described["dataset"],
            config={
                **flags,
                **self._described["config"],
                "quantities": quantities,
                "processor": processor(),
                "torch": torch.__version__,
            },
            checkpoint_sha256=None,
            seconds=time.perf_counter() - self._start,
            device=self.device,
            table=SPEED_TABLE,
            row=self._name,
        )


def processor() -> str:
    """The CPU in words, as Linux calls it; elsewhere its architecture."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def run_bench(
    parser: BenchParser, bench: Callable[[argparse.Namespace, BenchReport], None], argv: Sequence[str] | None = None
) -> None:
    """Parse, measure, record; exits with status 2 and one line on any error that the user can mend.

    Args:
        parser: With the bench's own flags.
        bench: Describes and adds what it measures.
        argv: Arguments without the program; None are the process's own.
    """

    def run(args: argparse.Namespace) -> None:
        threads, silenced = torch.get_num_threads(), logging.root.manager.disable
        try:
            report = BenchReport(parser.name, args, parser.goal_sizes(args))
            bench(args, report)
            report.finish()
        finally:  # whoever runs a bench inside a process goes on as before
            torch.set_num_threads(threads)
            logging.disable(silenced)

    run_command_line(parser, run, argv)
