"""Time and memory of LaSt pooling against the straightforward version, and its share of a training step.

    python tools/bench/bench_pooling.py [--repeats 9] [--record]

The straightforward version is the formula as one would first write it: complex FFT inside autograd, fftshift, a full
sorted topk. Both sides run in this process, in turn, float32, forward + backward; ratios of medians are printed, never
a bare time. Memory is what the CPU allocator hands out, read from torch's profiler.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter; read when torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from last_vit import attach_last, last_pool, last_select
from last_vit.results import write_result

B, N, D = 16, 196, 768
GOALS = {1: 4.0, 7: 1.5, 98: 1.5}


def straightforward_pool(x: Tensor, top_k: int) -> Tensor:
    """The release's formula, differentiated as it stands: [B, N, D] -> [B, D]."""
    channels = x.shape[-1]
    position = torch.arange((-channels) // 2 + 1, channels // 2 + 1, dtype=torch.float32)
    kernel = torch.exp(-(position**2) / (2 * channels))
    spectrum = torch.fft.fftshift(torch.fft.fft(x, dim=-1), dim=-1) * kernel
    low_freq = torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=-1), dim=-1).real
    _, topk_idx = torch.topk(x / (low_freq - x).abs(), k=top_k, dim=1, largest=True)
    return torch.gather(x, 1, topk_idx).mean(dim=1)


def alternate(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, three calls at a time in turn, so that drift of the machine hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            for _ in range(3):
                start = time.perf_counter()
                function()
                if repeat:  # the first round warms up
                    seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def peak_bytes(function: Callable[[], object]) -> tuple[int, int]:
    """(peak, remaining) CPU bytes that a call allocates on top of what is there, while its result is alive."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    del result
    return peak, now


def bench_speed(repeats: int) -> dict[str, float]:
    """Forward + backward ratios for one and two threads."""
    ratios = {}
    x = torch.randn(B, N, D, requires_grad=True)

    def step(pool: Callable[[Tensor, int], Tensor], top_k: int) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            pool(x, top_k).sum().backward()

        return run

    print(f"forward + backward, float32, B={B} N={N} D={D}: how many times faster than the straightforward version")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for top_k, goal in GOALS.items():
            plain, ours = alternate([step(straightforward_pool, top_k), step(last_pool, top_k)], repeats)
            ratio = ratios[f"speedup_k{top_k}_threads{threads}"] = plain / ours
            verdict = "ok" if ratio >= goal else "BELOW GOAL"
            print(f"  threads {threads}  K={top_k:<3d} {ratio:5.2f}x  (goal {goal}x: {verdict})")
    return ratios


def bench_memory() -> dict[str, float]:
    """Extra memory while selecting, and what of it stays."""
    peaks = {}
    x = torch.randn(B, N, D, requires_grad=True)
    size = x.numel() * x.element_size()
    print("extra memory in units of the input: peak while selecting; left when the indices are returned; indices alone")
    for top_k in GOALS:
        peak, left = peak_bytes(lambda k=top_k: last_select(x, k))
        peaks[f"memory_k{top_k}"] = peak / size
        print(
            f"  K={top_k:<3d} last_select      {peak / size:4.2f}  {left / size:4.2f}  {B * top_k * D * 8 / size:4.2f}"
        )
        peak, left = peak_bytes(lambda k=top_k: straightforward_pool(x, k))
        print(f"  K={top_k:<3d} straightforward  {peak / size:4.2f}  {left / size:4.2f}")
        peaks[f"memory_plain_k{top_k}"] = peak / size
    return peaks


def bench_share(repeats: int) -> dict[str, float]:
    """LaSt's share of a training step of ViT-S/16 and ViT-B/16: the pooling alone against the whole step with it."""
    print("training step (forward + backward, 224 px, batch 8, 2 threads): LaSt's pooling in percent of the whole step")
    torch.set_num_threads(2)
    shares = {}
    images, labels = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))
    for name, heads, width in (("ViT-S/16", 6, 384), ("ViT-B/16", 12, 768)):
        model = VisionTransformer(224, 16, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width)
        tokens = torch.randn(8, N, width, requires_grad=True)

        def step(model: nn.Module = model) -> None:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()

        for top_k in GOALS:
            attach_last(model, top_k)
            with_last, pool_alone = alternate(
                [step, lambda k=top_k, t=tokens: last_pool(t, k).sum().backward()], max(2, repeats // 3)
            )
            share = shares[f"share_{name}_k{top_k}"] = 100 * pool_alone / with_last
            print(f"  {name}  K={top_k:<3d} {share:5.2f}%")
    return shares


def main() -> None:
    """Run the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of three timed calls of each side (default 9)")
    parser.add_argument("--record", action="store_true", help="write results/bench_pooling.json, README's speed table")
    args = parser.parse_args()
    torch.manual_seed(0)
    start = time.perf_counter()
    metrics = {**bench_speed(args.repeats), **bench_memory(), **bench_share(args.repeats)}
    if args.record:
        write_result(
            "bench_pooling",
            metrics,
            n_images=B,
            dataset=f"random tokens [{B}, {N}, {D}], float32",
            config={"repeats": args.repeats},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device="cpu",
            table="pooling_speed",
            row="LaSt pooling",
        )


if __name__ == "__main__":
    main()
