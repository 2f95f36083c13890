"""Rate of the four evaluations as their commands run them, and the shares of model, input and everything else.

    python tools/bench/bench_evaluation.py [--evaluation segmentation] [--data DIR] [--images 512] [--record]

Each is its command's own loop over image files, from the loader to the finished metrics, with random weights: Point-in-
Box (evaluate_patch_hit.py), object discovery by patch scores, zero-shot segmentation with ADE20K's 150 names, and
open-vocabulary detection with its AP. `model` is the forward pass, `input` the wait for the next batch, `rest` what is
left: copies, scores, labels, boxes, counting, matching. Point-in-Box is also held against the bare forward pass over
the same images in memory.

Models: ViT-B/16, DINO's ViT-S/16, CLIP ViT-B/16, and for detection on a CPU the small config of 224 pixels, since F-ViT
B/16 takes many seconds per image there; a small model makes the shares of the others large. Without workers, the
default on a CPU, all of decoding counts as input and the clock is one thread's CPU time; with workers input is what
they do not hide. On a GPU the rate is that of an undisturbed pass, the shares are of one that waits for the GPU at
every border of the parts.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import Ratio, ratio, wait
from evaluation_files import SIDE, write_set
from evaluation_runs import Evaluation, RunOptions, detection, object_discovery, point_in_box, segmentation
from loop_clock import LoopClock, LoopTimes

from last_vit.command_line import positive

VIT_B = "torchvision:vit_b_16@random,pool=last,top_k=1"
VIT_S = "dino:vit_small/16@random,pool=last,top_k=1"
CLIP_B = "open_clip:ViT-B-16@random"
FVIT_SMALL, FVIT_B = "ov_coco/coco_mini.py", "ov_coco/fvit_vitb16_last.py"
POINT_IN_BOX_LIMIT, LABELS_LIMIT = 1.10, 20.0
MOST_WORKERS = 16
WORDS = {"model": "the model", "input": "waiting for input", "rest": "everything else"}


class Case(NamedTuple):
    """An evaluation, the layout of its files, and per kind of device its model and the images of one pass."""

    build: Callable[[RunOptions], Evaluation]
    layout: str
    sizes: dict[str, tuple[str, int]]


CASES = {
    "point_in_box": Case(point_in_box, "imagenet", {"cpu": (VIT_B, 4), "cuda": (VIT_B, 4096)}),
    "object_discovery": Case(object_discovery, "voc", {"cpu": (VIT_S, 4), "cuda": (VIT_S, 512)}),
    "segmentation": Case(segmentation, "ade20k", {"cpu": (CLIP_B, 2), "cuda": (CLIP_B, 512)}),
    "detection": Case(detection, "coco", {"cpu": (FVIT_SMALL, 4), "cuda": (FVIT_B, 512)}),
}


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """All that were asked for, one after the other."""
    kind = report.device.type
    models = {name: CASES[name].sizes[kind][0] for name in args.evaluation}
    counts = {name: args.images or CASES[name].sizes[kind][1] for name in args.evaluation}
    workers = args.num_workers
    if workers is None:
        workers = min(MOST_WORKERS, os.cpu_count() or 1) if kind == "cuda" else 0
    what = f"drawn images of {SIDE} px" if args.data is None else f"image files in {Path(args.data).name}"
    report.describe(
        f"{what}, {workers} loading processes",
        dataset=what,
        n_images=sum(counts.values()),
        num_workers=workers,
        models=models,
        images=counts,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in args.evaluation:
            case, data = CASES[name], Path(args.data or folder)
            if not args.data:
                write_set(data, case.layout, counts[name])
            evaluation = case.build(RunOptions(data, report.device, counts[name], workers, models[name]))
            report_one(name, evaluation, args.rounds, workers, report)


def report_one(name: str, evaluation: Evaluation, rounds: int, workers: int, report: BenchReport) -> None:
    """Measure one evaluation and add its numbers."""
    device = report.device
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1 and not workers
    clock = time.process_time if one_thread else time.perf_counter
    split, whole, bare = measure(evaluation, rounds, device, clock)
    add, title = report.add, evaluation.words.split(",")[0]
    rate = spread([evaluation.num_images / seconds for seconds in whole])
    add(f"{name}_images_per_second", evaluation.words, rate, unit="images/s")
    for part in WORDS:
        limit = LABELS_LIMIT if (name, part) == ("segmentation", "rest") else None
        shares = spread([100 * getattr(times, part) / times.total for times in split])
        add(f"{name}_{part}_percent", f"{title}: share of {WORDS[part]}", shares, limit=limit, unit="%")
    if bare:
        add(
            f"{name}_over_forward",
            f"{title}: time over the bare forward pass's",
            ratio(whole, bare),
            limit=POINT_IN_BOX_LIMIT,
        )


def measure(
    evaluation: Evaluation, rounds: int, device: torch.device, clock: Callable[[], float]
) -> tuple[list[LoopTimes], list[float], list[float]]:
    """Rounds of all sides in turn; a first one, which warms up, does not count.

    Returns:
        Per round the split times, the undisturbed pass's seconds (a CPU's pass is never disturbed), and those of the
        bare forward pass, [] where there is none.
    """
    split: list[LoopTimes] = []
    whole: list[float] = []
    bare: list[float] = []
    for _ in range(rounds + 1):
        split.append(LoopClock(device, clock).time(evaluation.run))
        is_cpu = device.type == "cpu"
        whole.append((split[-1] if is_cpu else LoopClock(device, clock, splits=False).time(evaluation.run)).total)
        if evaluation.bare is not None:
            start = clock()
            evaluation.bare()
            wait(device)
            bare.append(clock() - start)
    return split[1:], whole[1:], bare[1:]


def spread(values: Sequence[float]) -> Ratio:
    """Median, smallest and largest."""
    return Ratio(statistics.median(values), min(values), max(values))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_evaluation", __doc__, rounds=2, recorded_rounds=5)
    add = parser.add_argument
    add("--evaluation", nargs="+", choices=CASES, default=list(CASES), help="default all")
    add(
        "--data",
        help="folder that holds imagenet/, VOC2012/, ADEChallengeData2016/ and coco/ in their official layouts, or as "
        "many as --evaluation reads; default: images drawn into a temporary folder",
    )
    add("--images", type=positive, help="of each evaluation; default 2 to 4 on a CPU, 512 to 4096 on a GPU")
    add(
        "--num-workers",
        type=int,
        help=f"loading processes; default 0 on a CPU, else one per core, {MOST_WORKERS} at most",
    )
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
