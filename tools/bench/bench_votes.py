"""Counting votes against a loop over images and channels, and what votes cost beside the forward pass.

    python tools/bench/bench_votes.py [--repeats 5] [--record]

The loop adds up one image's and one channel's choices at a time (K votes in one indexing operation), over the very
indices that `vote_count` gets; other results than ours stop the run. Both sides run in this process, in turn; ratios
of medians are printed. Then what visualize_token_selection.py does with every batch (select, count, statistics with
objects) on a ViT-S/16, against the bare forward pass of the same batches, without data loading.
"""

import argparse
import time
from collections.abc import Callable

import torch
from bench_pooling import alternate
from torch import Tensor
from torchvision.models import VisionTransformer

from last_vit import last_select, vote_count
from last_vit.dense_batches import dense_batches
from last_vit.metrics.patch_foreground import patch_foreground
from last_vit.metrics.vote_statistics import VoteStatistics
from last_vit.results import write_result

B, N, D = 16, 196, 768
TOP_KS = (1, 7, 98)
COUNTING_GOAL, LOOP_GOAL = 100.0, 0.85


def counted_in_a_loop(topk_idx: Tensor, num_patches: int) -> Tensor:
    """`vote_count`, image by image and channel by channel: long [B, K, D] -> long [B, N]."""
    votes = torch.zeros(len(topk_idx), num_patches, dtype=torch.long)
    for image in range(topk_idx.shape[0]):
        for channel in range(topk_idx.shape[2]):
            votes[image, topk_idx[image, :, channel]] += 1
    return votes


def bench_counting(repeats: int) -> dict[str, float]:
    """How many times faster counting is, alone and together with selecting."""
    ratios = {}
    tokens = torch.randn(B, N, D)
    print(f"votes of random tokens [{B}, {N}, {D}], float32, {torch.get_num_threads()} threads: times as fast")
    for top_k in TOP_KS:
        topk_idx = last_select(tokens, top_k)
        if not torch.equal(vote_count(topk_idx, N), counted_in_a_loop(topk_idx, N)):
            raise RuntimeError(f"vote_count and the loop count differently at K = {top_k}")

        def select(k: int = top_k) -> Tensor:
            return last_select(tokens, k)

        def ours(idx: Tensor = topk_idx) -> Tensor:
            return vote_count(idx, N)

        def loop(idx: Tensor = topk_idx) -> Tensor:
            return counted_in_a_loop(idx, N)

        loop_seconds, seconds, select_seconds = alternate([loop, ours, select], repeats)
        ratio = ratios[f"counting_speedup_k{top_k}"] = loop_seconds / seconds
        whole = (select_seconds + loop_seconds) / (select_seconds + seconds)
        ratios[f"select_and_count_speedup_k{top_k}"] = whole
        verdict = "ok" if ratio >= COUNTING_GOAL else "BELOW GOAL"
        print(
            f"  K={top_k:<3d} counting {ratio:6.0f}x  (goal {COUNTING_GOAL:.0f}x: {verdict}; {1e3 * seconds:.3f} ms "
            f"against {1e3 * loop_seconds:.0f} ms)   select + count {whole:5.1f}x"
        )
    return ratios


def bench_loop(repeats: int) -> dict[str, float]:
    """Throughput of the diagnostic's loop against the bare forward pass of ViT-S/16 at 224 px, batch 8."""
    model = VisionTransformer(224, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536).eval()
    batch = {"image": torch.randn(8, 3, 224, 224), "foreground": torch.zeros(8, 224, 224, dtype=torch.uint8)}
    batch["foreground"][:, 50:150, 60:170] = 1

    @torch.inference_mode()
    def bare() -> None:
        model(batch["image"])

    def diagnostic(top_k: int) -> Callable[[], None]:
        def run() -> None:
            statistics = VoteStatistics((14, 14))
            for output, moved in dense_batches(model, [batch], torch.device("cpu")):
                votes = vote_count(last_select(output.patch_tokens, top_k), N)
                statistics.update(votes, *patch_foreground(moved["foreground"], output.grid_hw))

        return run

    shares = {}
    print("the diagnostic's loop (forward, select, count, statistics), ViT-S/16, 224 px: share of the bare throughput")
    for top_k in TOP_KS:
        bare_seconds, seconds = alternate([bare, diagnostic(top_k)], repeats)
        share = shares[f"throughput_share_k{top_k}"] = bare_seconds / seconds
        verdict = "ok" if share >= LOOP_GOAL else "BELOW GOAL"
        print(f"  K={top_k:<3d} {share:5.2f}  (goal {LOOP_GOAL}: {verdict})")
    return shares


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of three timed calls of each side (default 5)")
    parser.add_argument("--record", action="store_true", help="write results/bench_votes.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    start = time.perf_counter()
    metrics = {**bench_counting(args.repeats), **bench_loop(args.repeats)}
    if args.record:
        write_result(
            "bench_votes",
            metrics,
            n_images=B,
            dataset=f"random tokens [{B}, {N}, {D}], float32",
            config={"repeats": args.repeats},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device="cpu",
        )


if __name__ == "__main__":
    main()
