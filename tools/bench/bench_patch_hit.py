"""Throughput of the Point-in-Box loop against the bare forward pass of the same model, without data loading.

    python tools/bench/bench_patch_hit.py [--model torchvision:vit_b_16] [--pool last] [--device cuda]

Both run over the same batches in one process, turn by turn; the printed ratio is the median over the rounds. Goal: at
least 0.90 (forward, patch score, best patch, box mapping and counting, over `model(images)`).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from last_vit.dense import attach_pool
from last_vit.metrics import PointInBox
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

    _seconds(bare, device), _seconds(loop, device)  # warm-up
    rounds = [(_seconds(bare, device), _seconds(loop, device)) for _ in range(args.rounds)]
    images = args.batch_size * args.batches
    for title, seconds in zip(("bare forward", "Point-in-Box loop"), zip(*rounds, strict=True), strict=True):
        print(f"{title:<18}{images / statistics.median(seconds):10.1f} images/s")
    ratio = statistics.median(bare_s / loop_s for bare_s, loop_s in rounds)
    print(f"{'ratio':<18}{ratio:10.3f} of the bare throughput (goal >= 0.90), {args.model}, {describe_device(device)}")


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
