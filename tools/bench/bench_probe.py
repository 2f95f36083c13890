"""Throughput of both patch-score probes (paper figure 2) against the bare forward passes that they need.

    python tools/bench/bench_probe.py [--model torchvision:vit_b_16] [--pool last] [--device cuda] [--record]

Score distribution: forward, patch score, patches of the object map and counting, against one `model(images)`. Masking
probe: scores, rankings, masking and a pass for each of three curves and --percents shares (the probe's default is 9),
against as many times `model(images)`. Images, labels and object maps are random and in memory, so loading is not
measured. Both sides run over the same batches, in turn.
"""

import argparse
from collections.abc import Sequence

import torch
from bench_patch_hit import add_model_flags, build_pooled
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, ratio
from patch_probes import MASKED_PERCENTS, MaskedAccuracy, count_masked, count_patch_scores
from score_distribution import ScoreDistribution

GOAL = 0.85


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Both probes."""
    device, size = report.device, args.batch_size
    model, prep = build_pooled(args, device)
    percents = MASKED_PERCENTS[: args.percents]
    num_passes = 1 + len(MaskedAccuracy(percents).masked)
    where = f"{args.model} pooled with {args.pool}, {prep.crop} px"
    report.describe(f"{where}, batches of {size}", dataset=f"random images, {where}", n_images=size, passes=num_passes)
    batch = {
        "image": torch.randn(size, 3, prep.crop, prep.crop, device=device),
        "foreground": torch.zeros(size, prep.crop, prep.crop, dtype=torch.uint8),
        "label": torch.arange(size),
        "index": torch.arange(size),
    }
    batch["foreground"][:, prep.crop // 5 : prep.crop // 2, prep.crop // 4 : prep.crop * 3 // 4] = 1
    with torch.inference_mode():
        num_classes = model(batch["image"]).shape[1]

    @torch.inference_mode()
    def bare(passes: int) -> None:
        for _ in range(passes):
            model(batch["image"])

    sides = {
        "bare": lambda: bare(1),
        "score_distribution": lambda: count_patch_scores(model, [batch], device, ScoreDistribution()),
        "bare_passes": lambda: bare(num_passes),
        "masking_probe": lambda: count_masked(model, [batch], device, MaskedAccuracy(percents), num_classes),
    }
    times = alternate(sides, args.rounds, device)
    words = "rate of the score distribution over bare passes"
    report.add("score_distribution_rate", words, ratio(times["bare"], times["score_distribution"]), goal=GOAL)
    words = f"rate of the masking probe over its {num_passes} bare passes"
    report.add("masking_probe_rate", words, ratio(times["bare_passes"], times["masking_probe"]), goal=GOAL)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_probe", __doc__, rounds=2, recorded_rounds=4)
    add_model_flags(parser, batch_size=2, recorded_batch_size=4)
    parser.add_size("--percents", 1, len(MASKED_PERCENTS), "shares of masked patches")
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
