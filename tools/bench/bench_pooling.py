"""Time and memory of LaSt pooling on a CPU against the straightforward version, memory bandwidth and a training step.

    python tools/bench/bench_pooling.py [--processes 3] [--rounds 2] [--record]

The straightforward version is the formula as one would first write it: complex FFT inside autograd, fftshift, a full
sorted topk. Both sides run in turn, float32, forward and backward, on one and on two threads, in several processes one
after the other: whether the C library maps a tensor's memory anew at each call is decided by how the heap happens to
lie, and a side that allocates much is then half as fast again or not, for as long as its process lives.

Bandwidth: a perfect pooling would read x once and, on the way back, write its gradient once, as a copy of x does. So
copying's time in percent of ours is the share of the memory's bandwidth that pooling uses.

Curves: time of forward and backward per value of x over that of the middle shape, and extra memory in inputs, while one
of B, N, D and K changes. Memory is what torch's allocator hands out, the gradient included. Both are on --threads.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, peak_bytes, ratio
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from last_vit import attach_last, last_pool

B, N, D = 16, 196, 768
GOALS = {1: 6.0, 7: 3.0, 98: 2.5}
THREADS = (1, 2)
MIDDLE = {"B": 4, "N": 196, "D": 768, "K": 7}
CURVES = {"B": (1, 16, 64), "N": (49, 784, 4096, 16384), "D": (192, 384, 1536), "K": (1, 49, 98, 195)}
SHARE_TOP_K, SHARE_BATCH, SHARE_ROUNDS = 7, 4, 2
VITS = {"ViT-S/16": (6, 384), "ViT-B/16": (12, 768)}


def straightforward_pool(x: Tensor, top_k: int) -> Tensor:
    """The release's formula, differentiated as it stands: [B, N, D] -> [B, D]."""
    channels = x.shape[-1]
    position = torch.arange((-channels) // 2 + 1, channels // 2 + 1, dtype=torch.float32, device=x.device)
    kernel = torch.exp(-(position**2) / (2 * channels))
    spectrum = torch.fft.fftshift(torch.fft.fft(x, dim=-1), dim=-1) * kernel
    low_freq = torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=-1), dim=-1).real
    _, topk_idx = torch.topk(x / (low_freq - x).abs(), k=top_k, dim=1, largest=True)
    return torch.gather(x, 1, topk_idx).mean(dim=1)


def step(pool: Callable[[Tensor, int], Tensor], x: Tensor, top_k: int) -> Callable[[], Tensor]:
    """Forward and backward of a pooling as a function without arguments, which returns the gradient."""
    return lambda: torch.autograd.grad(pool(x, top_k).sum(), x)[0]


def speed_times(shape: tuple[int, int, int], rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of a copy, of the straightforward version and of ours for every K; for a process of its own."""
    torch.set_num_threads(threads)
    x = torch.randn(shape, requires_grad=True)
    values, copied = x.detach(), torch.empty(shape)
    sides: dict[str, Callable[[], object]] = {"copy": lambda: copied.copy_(values)}
    for top_k in GOALS:
        sides |= {f"plain{top_k}": step(straightforward_pool, x, top_k), f"ours{top_k}": step(last_pool, x, top_k)}
    return alternate(sides, rounds, warm_calls=1)


def bench_speed(processes: int, rounds: int, report: BenchReport) -> None:
    """Against the straightforward version and against a copy of x."""
    fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_workers": 1, "max_tasks_per_child": 1}
    for threads in THREADS:
        with ProcessPoolExecutor(**fresh) as executor:
            runs = list(executor.map(speed_times, *zip(*[((B, N, D), rounds, threads)] * processes, strict=True)))
        times = {side: [seconds for run in runs for seconds in run[side]] for side in runs[0]}
        on = f"on {threads} thread{'s' * (threads > 1)}"
        for top_k, goal in GOALS.items():
            words = f"pooling against its straightforward version, K = {top_k}, {on}"
            speedup = ratio(times[f"plain{top_k}"], times[f"ours{top_k}"])
            report.add(f"speedup_k{top_k}_threads{threads}", words, speedup, goal=goal)
        for top_k in GOALS:
            words = f"bandwidth of a copy that pooling uses, K = {top_k}, {on}"
            share = ratio(times["copy"], times[f"ours{top_k}"]).times(100)
            report.add(f"bandwidth_k{top_k}_threads{threads}", words, share, unit="%")
        report.keep(**{f"copy_gb_per_second_threads{threads}": 8e-9 * B * N * D / statistics.median(times["copy"])})


def bench_memory(report: BenchReport) -> None:
    """Extra memory of forward and backward."""
    x = torch.randn(B, N, D, requires_grad=True)
    for top_k in GOALS:
        for name, pool in (("", last_pool), ("_plain", straightforward_pool)):
            peak, _ = peak_bytes(step(pool, x, top_k))
            side = "the straightforward version" if name else "pooling"
            words = f"extra memory of {side}, K = {top_k}"
            report.add(f"memory{name}_k{top_k}", words, peak / (4 * x.numel()), unit="inputs")


def bench_curves(rounds: int, report: BenchReport) -> None:
    """Over B, N, D and K."""
    shapes = [MIDDLE, *({**MIDDLE, letter: size} for letter, sizes in CURVES.items() for size in sizes)]
    steps = {}
    for shape in shapes:
        x = torch.randn(shape["B"], shape["N"], shape["D"], requires_grad=True)
        steps[" ".join(f"{letter}={size}" for letter, size in shape.items())] = (x, step(last_pool, x, shape["K"]))
    times = alternate({name: run for name, (_, run) in steps.items()}, rounds)
    middle, *others = steps
    print(f"  time per value over that of {middle}, extra memory in inputs")
    for name in (middle, *others):
        x, run = steps[name]
        share = ratio(times[name], times[middle]).times(steps[middle][0].numel() / x.numel())
        memory = peak_bytes(run)[0] / (4 * x.numel())
        print(f"    {name:<24} {share!s:<22} {memory:5.2f}")
        shape = name.replace("=", "").replace(" ", "_")
        report.keep(**{f"curve_time_{shape}": share.median, f"curve_memory_{shape}": memory})


def bench_share(report: BenchReport) -> None:
    """The pooling alone against a whole training step (forward and backward) with it."""
    torch.set_num_threads(2)
    images, labels = torch.randn(SHARE_BATCH, 3, 224, 224), torch.randint(0, 1000, (SHARE_BATCH,))
    for name, (heads, width) in VITS.items():
        model = VisionTransformer(224, 16, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width)
        attach_last(model, SHARE_TOP_K)
        tokens = torch.randn(SHARE_BATCH, N, width, requires_grad=True)

        def train(model: VisionTransformer = model) -> None:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()

        times = alternate({"step": train, "pool": step(last_pool, tokens, SHARE_TOP_K)}, SHARE_ROUNDS)
        words = f"of a training step of {name} is pooling, K = {SHARE_TOP_K}, 2 threads"
        key = f"share_{name.replace('-', '').replace('/', '').lower()}_k{SHARE_TOP_K}"
        report.add(key, words, ratio(times["pool"], times["step"]).times(100), unit="%")


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """All four parts."""
    size = f"[{B}, {N}, {D}]"
    words = f"random tokens {size}, float32"
    report.describe(words, dataset=words, n_images=B, curves={"middle": MIDDLE, **CURVES})
    bench_speed(args.processes, args.rounds, report)
    torch.set_num_threads(args.threads)
    bench_memory(report)
    bench_curves(args.rounds, report)
    bench_share(report)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_pooling", __doc__, rounds=2, recorded_rounds=3, has_gpu_side=False)
    parser.add_size("--processes", 3, 15, "in which to time, one after the other")
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
