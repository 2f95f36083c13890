"""Throughput of the Point-in-Box loops against the bare forward pass of the same model, without data loading.

    python tools/bench/bench_patch_hit.py [--model torchvision:vit_b_16] [--pool last] [--device cuda]

All run over the same batches in one process, turn by turn; the printed ratios are medians over the rounds. The loop of
evaluate_patch_hit.py is forward, patch score, best patch, box mapping and counting, over `model(images)`: goal at least
0.90. That of point_in_box_table.py also reads the last block's output and counts norms: goal at least 0.85.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from last_vit.dense import attach_pool
from last_vit.metrics import PointInBox
from last_vit.metrics.patch_norms import PatchNorms
from last_vit.model_spec import build_model, preprocessing_of
from last_vit.patch_hit import count_patch_hits
from last_vit.runtime import describe_device, seed_everything, select_device
from last_vit.token_pool import POOL_KINDS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:vit_b_16", help="as for evaluate_patch_hit.py; random weights")
    parser.add_argument("--pool", default="last", choices=POOL_KINDS, help="attached to both sides")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=2, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    seed_everything(0)
    device = select_device(args.device)
    model = build_model(args.model)
    prep = preprocessing_of(args.model, model)
    attach_pool(model, args.pool, top_k=1 if args.pool == "last" else None)
    model.to(device)
    batch = {
        "image": torch.randn(args.batch_size, 3, prep.crop, prep.crop, device=device),
        "box_xyxy": torch.tensor([[100.0, 80.0, 300.0, 250.0]]).repeat(args.batch_size, 1),
        "image_hw": torch.tensor([[375, 500]]).repeat(args.batch_size, 1),
    }
    batches = [batch] * args.batches

    @torch.inference_mode()
    def bare() -> None:
        for one in batches:
            model(one["image"])

    def loop() -> None:
        count_patch_hits(model, batches, device, PointInBox(prep.crop, prep.resize))

    def table() -> None:
        count_patch_hits(model, batches, device, PointInBox(prep.crop, prep.resize), patch_norms=PatchNorms())

    runs = {"bare forward": (bare, None), "Point-in-Box loop": (loop, 0.90), "table's loop": (table, 0.85)}
    for run, _ in runs.values():
        _seconds(run, device)  # warm-up
    rounds = [[_seconds(run, device) for run, _ in runs.values()] for _ in range(args.rounds)]
    images = args.batch_size * args.batches
    print(f"{args.model}, {describe_device(device)}")
    for column, (title, (_, goal)) in enumerate(runs.items()):
        seconds = statistics.median(each[column] for each in rounds)
        line = f"{title:<18}{images / seconds:10.1f} images/s"
        if goal is not None:
            ratio = statistics.median(each[0] / each[column] for each in rounds)
            line += f"{ratio:8.3f} of the bare throughput (goal >= {goal:.2f})"
        print(line)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
