"""The benches of this folder, each in a process of its own, and one table at the end.

    python tools/bench/run_all.py                            # make bench: on the CPU, small inputs, writes nothing
    python tools/bench/run_all.py --gpu                      # make bench-gpu: on the first GPU, with records
    python tools/bench/run_all.py --record                   # on the CPU at the goals' sizes, with records
    python tools/bench/run_all.py bench_pooling --record     # one of them

A missed goal stops nothing and is no failure; the exit status is 1 when a bench crashed. Records go to results/, from
where `python tools/make_results_tables.py` and `python tools/plot_speed.py` take them into docs/.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Benches measure the tracks' own code, which stands in folders of scripts.
FOLDERS = ("cls_pretrain", "dino", "clip", "ov_detection", "visualization", "tools", "tools/bench")
CPU_BENCHES = ("bench_pooling", "bench_training_step", "bench_dino", "bench_detector", "bench_lvis", "bench_data")
GPU_BENCHES = ("bench_pooling_cuda", "bench_training_step", "bench_dino", "bench_detector")


def run_one(name: str, device: str, record: bool) -> None:
    """Run a bench in this process."""
    import torch
    from bench_report import BenchReport

    report = BenchReport(name, torch.device(device), record)
    importlib.import_module(name).bench(report)
    report.finish()


def run_apart(name: str, flags: Sequence[str]) -> tuple[int, int, int, float]:
    """Run a bench in a process of its own, passing on its output; goals met and missed, exit status, seconds."""
    print(f"\n== {name}", flush=True)
    path = os.pathsep.join([*(str(ROOT / folder) for folder in FOLDERS), *filter(None, [os.getenv("PYTHONPATH")])])
    command = [sys.executable, "-u", __file__, name, "--here", *flags]
    start, lines = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    met, missed = (sum(line.endswith(word) for line in lines) for word in (": met", ": MISSED"))
    return met, missed, child.returncode, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*CPU_BENCHES, "bench_pooling_cuda")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"default: all; of {', '.join(known)}")
    parser.add_argument("--gpu", action="store_true", help="those that have a GPU side, on it, with records")
    parser.add_argument("--record", action="store_true", help="the goals' sizes, and records in results/")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = sorted(set(args.benches) - set(known))
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; known: {', '.join(known)}")
    if args.here:
        run_one(args.benches[0], "cuda" if args.gpu else "cpu", args.record)
        return 0
    flags = [*["--gpu"] * args.gpu, *["--record"] * (args.record or args.gpu)]
    outcomes = {name: run_apart(name, flags) for name in args.benches or (GPU_BENCHES if args.gpu else CPU_BENCHES)}
    print(f"\n{'bench':<24} {'goals met':>9} {'missed':>6} {'seconds':>8}")
    for name, (met, missed, status, seconds) in outcomes.items():
        crash = f"  CRASHED with exit status {status}" if status else ""
        print(f"{name:<24} {met:9d} {missed:6d} {seconds:8.0f}{crash}")
    return int(any(status for _, _, status, _ in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
