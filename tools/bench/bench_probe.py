"""Throughput of both patch-score probes (paper figure 2) against the bare forward passes that they need.

    python tools/bench/bench_probe.py [--model torchvision:vit_b_16] [--pool last] [--device cuda] [--record]

Score distribution: forward, patch score, patches of the object map and counting, against one `model(images)`. Masking
probe: scores, rankings, masking and 28 passes (the default shares), against 28 times `model(images)`. Images, labels
and object maps are random and in memory, so loading is not measured. Both sides run over the same batches in one
process, turn by turn; the printed ratio is the median over the rounds. Goal: at least 0.85.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from last_vit.dense import attach_pool
from last_vit.metrics.score_distribution import ScoreDistribution
from last_vit.model_spec import build_model, preprocessing_of
from last_vit.patch_probes import MaskedAccuracy, count_masked, count_patch_scores
from last_vit.results import write_result
from last_vit.runtime import describe_device, seed_everything, select_device
from last_vit.token_pool import POOL_KINDS

GOAL = 0.85


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:vit_b_16", help="as for evaluate_patch_hit.py; random weights")
    parser.add_argument("--pool", default="last", choices=POOL_KINDS, help="attached to both sides")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write results/bench_probe.json")
    args = parser.parse_args()

    seed_everything(0)
    device = select_device(args.device)
    model = build_model(args.model)
    prep = preprocessing_of(args.model, model)
    attach_pool(model, args.pool, top_k=1 if args.pool == "last" else None)
    model.to(device)
    batch = {
        "image": torch.randn(args.batch_size, 3, prep.crop, prep.crop, device=device),
        "foreground": torch.zeros(args.batch_size, prep.crop, prep.crop, dtype=torch.uint8),
        "label": torch.arange(args.batch_size),
        "index": torch.arange(args.batch_size),
    }
    batch["foreground"][:, prep.crop // 5 : prep.crop // 2, prep.crop // 4 : prep.crop * 3 // 4] = 1
    with torch.inference_mode():
        num_classes = model(batch["image"]).shape[1]
    num_passes = 1 + len(MaskedAccuracy().masked)

    @torch.inference_mode()
    def bare(passes: int) -> None:
        for _ in range(passes):
            model(batch["image"])

    def scores() -> None:
        count_patch_scores(model, [batch] * num_passes, device, ScoreDistribution())

    def masking() -> None:
        count_masked(model, [batch], device, MaskedAccuracy(), num_classes)

    start = time.perf_counter()
    where = f"{args.model} pooled with {args.pool}, {prep.crop} px, batch {args.batch_size}"
    print(f"{where}, {describe_device(device)}: share of the bare throughput over {num_passes} passes")
    shares = {}
    for name, probe in (("score_distribution", scores), ("masking_probe", masking)):
        bare(1), probe()  # warm-up
        rounds = [(_seconds(lambda: bare(num_passes), device), _seconds(probe, device)) for _ in range(args.rounds)]
        share = shares[f"{name}_throughput_share"] = statistics.median(bare_s / probe_s for bare_s, probe_s in rounds)
        seconds = [statistics.median(side) for side in zip(*rounds, strict=True)]
        verdict = "ok" if share >= GOAL else "BELOW GOAL"
        print(f"  {name:<20}{share:6.3f}  (goal {GOAL}: {verdict}; {seconds[1]:.2f} s against {seconds[0]:.2f} s)")
    if args.record:
        write_result(
            "bench_probe",
            shares,
            n_images=args.batch_size,
            dataset=f"random images, {where}",
            config={"rounds": args.rounds, "passes": num_passes},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
