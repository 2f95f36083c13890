"""Throughput of the Point-in-Box loops against the bare forward pass of the same model, without data loading.

    python tools/bench/bench_patch_hit.py [--model torchvision:vit_b_16] [--pool last] [--device cuda] [--record]

All run over the same batches, in turn. The loop of evaluate_patch_hit.py is forward, patch score, best patch, box
mapping and counting, over `model(images)`. That of point_in_box_table.py also reads the last block's output and counts
norms.
"""

import argparse
from collections.abc import Sequence

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, ratio
from torch import nn

from last_vit.dense import attach_pool
from last_vit.metrics import PointInBox
from last_vit.metrics.patch_norms import PatchNorms
from last_vit.models import build_model, preprocessing_of
from last_vit.patch_hit import count_patch_hits
from last_vit.preprocessing import Preprocessing
from last_vit.token_pool import POOL_KINDS

LOOP_GOAL, TABLE_GOAL = 0.90, 0.85


def add_model_flags(parser: BenchParser, batch_size: int, recorded_batch_size: int) -> None:
    """Which model a diagnostic's loop is measured with, and its batches."""
    parser.add_argument("--model", default="torchvision:vit_b_16", help="as for evaluate_patch_hit.py; random weights")
    parser.add_argument("--pool", default="last", choices=POOL_KINDS, help="attached to both sides")
    parser.add_size("--batch-size", batch_size, recorded_batch_size, "images per batch", on_gpu=64)


def build_pooled(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """The model of `add_model_flags` with its pooling, and its input size."""
    model = build_model(args.model)
    prep = preprocessing_of(args.model, model)
    attach_pool(model, args.pool, top_k=1 if args.pool == "last" else None)
    return model.to(device), prep


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Both loops."""
    device, size = report.device, args.batch_size
    model, prep = build_pooled(args, device)
    where = f"{args.model} pooled with {args.pool}, {prep.crop} px"
    report.describe(f"{where}, batches of {size}", dataset=f"random images, {where}", n_images=size * args.batches)
    batch = {
        "image": torch.randn(size, 3, prep.crop, prep.crop, device=device),
        "box_xyxy": torch.tensor([[100.0, 80.0, 300.0, 250.0]]).repeat(size, 1),
        "image_hw": torch.tensor([[375, 500]]).repeat(size, 1),
    }
    batches = [batch] * args.batches

    @torch.inference_mode()
    def bare() -> None:
        for one in batches:
            model(one["image"])

    def loop(with_norms: bool) -> None:
        norms = PatchNorms() if with_norms else None
        count_patch_hits(model, batches, device, PointInBox(prep.crop, prep.resize), patch_norms=norms)

    sides = {"bare": bare, "loop": lambda: loop(False), "table": lambda: loop(True)}
    times = alternate(sides, args.rounds, device)
    for name, words, goal in (
        ("loop", "rate of Point-in-Box over bare passes", LOOP_GOAL),
        ("table", "rate of Point-in-Box and norms over bare passes", TABLE_GOAL),
    ):
        report.add(f"{name}_rate", words, ratio(times["bare"], times[name]), goal=goal)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_patch_hit", __doc__, rounds=3, recorded_rounds=5)
    add_model_flags(parser, batch_size=4, recorded_batch_size=16)
    parser.add_size("--batches", 1, 2, "batches of one turn")
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
