"""Every bench of this folder, each in a process of its own, and one table at the end.

    python tools/bench/run_all.py            # make bench: on the CPU, small inputs, under ten minutes, writes nothing
    python tools/bench/run_all.py --gpu      # make bench-gpu: on the first GPU, at the goals' sizes, with records
    python tools/bench/run_all.py --record   # on the CPU at the goals' sizes, with records; half an hour

A missed goal stops nothing and is no failure; the exit status is 1 when a bench crashed. Records go to results/, from
where `python tools/make_results_tables.py` and `python tools/bench/plot_speed.py` take them into README.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MET, MISSED = re.compile(r": ok\b"), re.compile(r"\b(?:BELOW|ABOVE) GOAL\b")


@dataclass(frozen=True)
class Bench:
    """One script of this folder.

    Attributes:
        name: Without ".py".
        devices: Where it has something to measure.
        needs: A module that may be missing.
    """

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: str = "torch"


BENCHES = (
    Bench("bench_pooling", ("cpu",)),
    Bench("bench_pooling_gpu", ("cuda",)),
    Bench("bench_training_rate", needs="detectron2"),
    Bench("bench_scaling", needs="detectron2"),  # takes the rates of the one before
    Bench("bench_data", ("cpu",)),
    Bench("bench_evaluation"),
    Bench("bench_patch_hit"),
    Bench("bench_votes"),
    Bench("bench_probe"),
    Bench("bench_dino"),
    Bench("bench_object_discovery"),
    Bench("bench_clip", needs="open_clip_train"),
    Bench("bench_zero_shot_seg", needs="open_clip"),
    Bench("bench_fvit", needs="detectron2"),
    Bench("bench_lvis_eval", ("cpu",), needs="pycocotools"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one bench: goals met and missed, exit status and wall seconds, or why it did not run."""

    name: str
    met: int = 0
    missed: int = 0
    status: int = 0
    seconds: float = 0.0
    skipped: str = ""


def run_script(path: Path, flags: Sequence[str], skipped: str = "") -> Outcome:
    """Run a bench, passing on its output as it comes.

    Args:
        path: The script.
        flags: Its arguments.
        skipped: Why not to run it.
    """
    print(f"\n== {path.stem}{f': skipped, {skipped}' if skipped else ''}", flush=True)
    if skipped:
        return Outcome(path.stem, skipped=skipped)
    start, lines = time.perf_counter(), []
    command = [sys.executable, "-u", str(path), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    goals = [sum(len(pattern.findall(line)) for line in lines) for pattern in (MET, MISSED)]
    return Outcome(path.stem, *goals, process.returncode, time.perf_counter() - start)


def reason_to_skip(bench: Bench, device: str) -> str:
    """Why a bench has nothing to measure here; empty when it has."""
    if device not in bench.devices:
        return "nothing of it runs on a GPU" if device == "cuda" else "needs a GPU"
    return "" if importlib.util.find_spec(bench.needs) else f"{bench.needs} is not installed"


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines of the table at the end."""
    lines = [f"{'bench':<24} {'goals met':>9} {'missed':>6} {'seconds':>8}"]
    for each in outcomes:
        numbers = f"{each.met:9d} {each.missed:6d} {each.seconds:8.0f}"
        crash = f"  CRASHED with exit status {each.status}" if each.status else ""
        lines.append(f"{each.name:<24} " + (f"skipped: {each.skipped}" if each.skipped else numbers + crash))
    met, missed = sum(each.met for each in outcomes), sum(each.missed for each in outcomes)
    return [*lines, f"{'all':<24} {met:9d} {missed:6d} {sum(each.seconds for each in outcomes):8.0f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="those that have a GPU side, on it, with records")
    parser.add_argument("--record", action="store_true", help="the goals' sizes, and records in results/")
    args = parser.parse_args(argv)
    device = "cuda" if args.gpu else "cpu"
    if args.gpu:
        import torch

        if not torch.cuda.is_available():
            parser.exit(2, "run_all.py: error: --gpu needs a GPU that torch sees; `make bench` measures the CPU\n")
    flags = ["--device", device, *["--record"] * (args.gpu or args.record)]
    outcomes = [run_script(HERE / f"{each.name}.py", flags, reason_to_skip(each, device)) for each in BENCHES]
    print("\n" + "\n".join(summary(outcomes)))
    return int(any(each.status for each in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
