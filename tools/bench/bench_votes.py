"""Counting votes against a loop over images and channels, and what votes cost beside the forward pass.

    python tools/bench/bench_votes.py [--rounds 5] [--threads 2] [--device cuda] [--record]

The loop adds up one image's and one channel's choices at a time (K votes in one indexing operation), over the very
indices that `vote_count` gets; other results than ours stop the run. Then what visualize_token_selection.py does with
every batch (select, count, statistics with objects) on a ViT-S/16, against the bare forward pass of the same batches,
without data loading.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, ratio
from patch_foreground import patch_foreground
from torch import Tensor
from torchvision.models import VisionTransformer
from vote_statistics import VoteStatistics

from last_vit import last_select, vote_count
from last_vit.dense_batches import dense_batches

B, N, D = 16, 196, 768
TOP_KS = (1, 7, 98)
COUNTS = 20  # of ours in one turn, which takes a thousandth of the loop's time
COUNTING_GOAL, LOOP_GOAL = 100.0, 0.85


def counted_in_a_loop(topk_idx: Tensor, num_patches: int) -> Tensor:
    """`vote_count`, image by image and channel by channel: long [B, K, D] -> long [B, N]."""
    votes = torch.zeros(len(topk_idx), num_patches, dtype=torch.long, device=topk_idx.device)
    for image in range(topk_idx.shape[0]):
        for channel in range(topk_idx.shape[2]):
            votes[image, topk_idx[image, :, channel]] += 1
    return votes


def bench_counting(rounds: int, report: BenchReport) -> None:
    """Counting alone and together with selecting."""
    tokens = torch.randn(B, N, D, device=report.device)
    for top_k in TOP_KS:
        topk_idx = last_select(tokens, top_k)
        if not torch.equal(vote_count(topk_idx, N), counted_in_a_loop(topk_idx, N)):
            raise RuntimeError(f"vote_count and the loop count differently at K = {top_k}")
        sides = {
            "loop": lambda idx=topk_idx: counted_in_a_loop(idx, N),
            "ours": lambda idx=topk_idx: [vote_count(idx, N) for _ in range(COUNTS)],
            "select": lambda k=top_k: last_select(tokens, k),
        }
        times = alternate(sides, rounds, report.device)
        times["ours"] = [seconds / COUNTS for seconds in times["ours"]]
        words = f"votes against a loop over images and channels, K = {top_k}"
        report.add(f"counting_k{top_k}", words, ratio(times["loop"], times["ours"]), goal=COUNTING_GOAL)
        whole = ([a + b for a, b in zip(times["select"], times[side], strict=True)] for side in ("loop", "ours"))
        report.add(f"select_and_count_k{top_k}", f"choice and votes against such a loop, K = {top_k}", ratio(*whole))


def bench_loop(rounds: int, report: BenchReport) -> None:
    """Throughput of the diagnostic's loop against the bare forward pass of ViT-S/16 at 224 px, batch 8."""
    model = VisionTransformer(224, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536).eval()
    model.to(report.device)
    batch = {
        "image": torch.randn(8, 3, 224, 224, device=report.device),
        "foreground": torch.zeros(8, 224, 224, dtype=torch.uint8),
    }
    batch["foreground"][:, 50:150, 60:170] = 1

    @torch.inference_mode()
    def bare() -> None:
        model(batch["image"])

    def diagnostic(top_k: int) -> Callable[[], None]:
        def run() -> None:
            statistics = VoteStatistics((14, 14))
            for output, moved in dense_batches(model, [batch], report.device):
                votes = vote_count(last_select(output.patch_tokens, top_k), N)
                statistics.update(votes, *patch_foreground(moved["foreground"], output.grid_hw))

        return run

    times = alternate({"bare": bare, **{f"k{k}": diagnostic(k) for k in TOP_KS}}, rounds, report.device)
    for top_k in TOP_KS:
        words = f"rate of the votes' diagnostic over bare passes, K = {top_k}"
        report.add(f"loop_rate_k{top_k}", words, ratio(times["bare"], times[f"k{top_k}"]), goal=LOOP_GOAL)


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Both parts."""
    size = f"[{B}, {N}, {D}]"
    report.describe(f"random tokens {size}; ViT-S/16, 224 pixels", dataset=f"random tokens {size}, float32", n_images=B)
    bench_counting(args.rounds, report)
    bench_loop(args.rounds, report)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    run_bench(BenchParser("bench_votes", __doc__, rounds=3, recorded_rounds=5), bench, argv)


if __name__ == "__main__":
    main()
