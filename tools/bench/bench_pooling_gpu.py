"""LaSt pooling's CUDA kernels against one read of x, the straightforward version and the library's own formulas.

    python tools/bench/bench_pooling_gpu.py [--rounds 30] [--record]

Counted for B=256, N=196, D=768 in bfloat16, of which one value of x is 2 bytes:

- Memory. The forward pass reads x once, 77 MB, and writes 0.4 MB of tokens and 0.8 MB of patches (K = 1) or 5 MB of
  bits; the backward pass reads those and writes the gradient, 77 MB. Each block of 64 channels reads a window of 128,
  so the second-level cache hands out 154 MB, and 77 MB more for the values themselves unless the first-level one does.
- Matrix products. The window times two pieces of the taps: 512 FLOP per value of x (of which 2 x 51 taps are not zero),
  20 GFLOP at K = 1, where 16 patches at a time are taken at the end, and 26 at larger K, where 196 patches are 256.
- The rest, read off the compiled kernels: 16 instructions per value at K = 1; at larger K 40, and 2.5 for each of some
  17 turns of the search, for 256 patches.

So at 4.8 TB/s, 790 TFLOP/s and 30 T instructions per second (data sheets and counts, not measurements) K = 1 would take
16 us for the memory, 26 us for the products and 22 us for the rest, which overlap at best, and K = 98 about 140 us.

First both sides must agree with float64, in every type; times are CUDA events around one call, after the caches were
flushed, ours also as a CUDA graph (without the time that Python takes to launch) and under torch.compile.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import torch
from bench_pooling import straightforward_pool
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import peak_bytes, ratio
from torch import Tensor

from last_vit import last_pool, last_select, pooling_triton
from last_vit.pooling_formulas import half_gain64

B, N, D = 256, 196, 768
TOP_K = (1, 7, 98, N)
READS = {1: 1.5, 98: 4.0}  # at most so many times one read of x
SPEEDUP = 10.0
TYPES = (torch.bfloat16, torch.float16, torch.float32)
MIDDLE = {"B": 16, "N": 196, "D": 768, "K": 7}
CURVES = {
    "B": (1, 64, 256, 1024),
    "N": (49, 256, 257, 1024, 4096, 16384),
    "D": (192, 384, 1024, 2048, 4096),
    "K": (1, 49, 98, 195),
}
FLUSH_BYTES = 1 << 32  # a millisecond of writing
CURVE_ROUNDS = 10


def formulas_pool(x: Tensor, top_k: int) -> Tensor:
    """`last_pool` as it runs where the kernels do not."""
    with mock.patch.object(pooling_triton, "takes", return_value=False):
        return last_pool(x, top_k)


def plain_pool(x: Tensor, top_k: int) -> Tensor:
    """The straightforward version; CUDA has no Fourier transform in bfloat16."""
    return straightforward_pool(x.float(), top_k).to(x.dtype)


def microseconds(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """GPU time of one call of each, in turn, with cold caches; a first round, which warms up, does not count."""
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flushed.zero_()  # meanwhile Python launches what is timed, up to some 25 kernels
            start.record()
            function()
            end.record()
            if turn:
                events[name].append((start, end))
        torch.cuda.synchronize()
    return {name: [1000 * start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def as_graph(function: Callable[[], object]) -> Callable[[], None]:
    """A CUDA graph of a call, ready to replay."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def disagreement(x: Tensor, topk_idx: Tensor) -> float:
    """How much better, in float64, the best patch that was left is than the worst kept one; 0 for a right choice.

    Relative to the larger score, the largest over all channels, after x_hat is allowed to be off by 1e-6 max |x|.
    """
    wide = x.double()
    gain = half_gain64(x.shape[2], x.shape[2] ** 0.5, "release", x.device)
    distance = (torch.fft.irfft(torch.fft.rfft(wide) * gain, n=x.shape[2]) - wide).abs()
    slack = 1e-6 * wide.abs().amax(dim=2, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    scores = torch.stack([wide / (distance - slack).clamp_min(tiny), wide / (distance + slack)])
    is_kept = torch.zeros_like(x, dtype=torch.bool).scatter_(1, topk_idx, True)
    worst_kept = scores.amax(0).masked_fill(~is_kept, torch.inf).amin(1)
    best_left = scores.amin(0).masked_fill(is_kept, -torch.inf).amax(1)
    return float(((best_left - worst_kept) / best_left.abs()).clamp_min(0).max())


def check_parity(device: torch.device) -> None:
    """Refuse to go on when a side disagrees with float64, or our ways to run with each other."""
    for dtype in TYPES:
        x = torch.randn(4, N, D, device=device).to(dtype)
        for top_k in TOP_K[:-1]:
            for name, takes in (("the kernels", True), ("the formulas", False)):
                with mock.patch.object(pooling_triton, "takes", return_value=takes):
                    topk_idx = last_select(x, top_k)
                    pooled = last_pool(x, top_k)
                worst = disagreement(x, topk_idx)
                mean = x.double().gather(1, topk_idx).mean(1)
                off = float((pooled.double() - mean).abs().max() / mean.abs().max())
                if worst > 1e-6 or off > max(1e-6, torch.finfo(dtype).eps):  # float32: the sum of K values rounds
                    raise ValueError(
                        f"{name} disagree with float64 at K={top_k}, {dtype}: a patch that was left scores {worst:.1e} "
                        f"better than a kept one, tokens are off by {off:.1e}; no time is worth reporting"
                    )
            torch.compiler.reset()  # which would stop at a handful of types and K
            if not torch.equal(torch.compile(last_pool, fullgraph=True)(x, top_k), last_pool(x, top_k)):
                raise ValueError(f"compiled and eager tokens differ at K={top_k}, {dtype}")
    print("  every side agrees with float64, and compiled with eager")


def bench_speed(rounds: int, report: BenchReport) -> None:
    """The goals: against one read of x and against the straightforward version."""
    x = torch.randn(B, N, D, device=report.device).bfloat16()
    leaf, copied = x.clone().requires_grad_(), torch.empty_like(x)
    size = x.numel() * x.element_size()
    for top_k in TOP_K:
        torch.compiler.reset()
        compiled = torch.compile(last_pool, fullgraph=True)
        sides: dict[str, Callable[[], object]] = {"copy": lambda: copied.copy_(x)}
        ours = {"": last_pool, "_compiled": compiled, "_formulas": formulas_pool, "_plain": plain_pool}
        for name, pool in ours.items():
            sides[f"forward{name}"] = lambda p=pool, k=top_k: p(x, k)
            sides[f"both{name}"] = lambda p=pool, k=top_k: torch.autograd.grad(p(leaf, k).sum(), leaf)
        sides["forward_graph"] = as_graph(sides["forward"])
        times = microseconds(sides, rounds, report.device)
        read = [each / 2 for each in times["copy"]]
        report.add(
            f"reads_k{top_k}", f"K={top_k}: forward in reads of x", ratio(times["forward_graph"], read),
            limit=READS.get(top_k),
        )  # fmt: skip
        goal = None if top_k == N else SPEEDUP
        for name, words in (("forward", "forward"), ("both", "forward and backward")):
            for side, against in (("plain", "the straightforward version"), ("formulas", "the library's formulas")):
                report.add(
                    f"{name}_k{top_k}_{side}", f"K={top_k}: {words} against {against}",
                    ratio(times[f"{name}_{side}"], times[name]), goal=goal if side == "plain" else None,
                )  # fmt: skip
        for name, each in times.items():
            median = statistics.median(each)
            print(f"    {name:<20} {median:8.1f} us ({min(each):.1f} to {max(each):.1f})")
            report.keep(**{f"us_{name}_k{top_k}": median})
        median = statistics.median(times["copy"])
        report.keep(copy_gb_per_second=2 * size / median / 1000)
        print(f"    copying x moves {2 * size / median / 1e6:.2f} TB/s")


def bench_curves(report: BenchReport) -> None:
    """Time and extra memory while one of B, N, D and K changes; for the record and for plot_speed.py."""
    print("  curves, bfloat16: forward, forward and backward, extra memory of both in inputs")
    shapes = [MIDDLE, *({**MIDDLE, letter: size} for letter, sizes in CURVES.items() for size in sizes)]
    middle_time = None  # per value of x, forward and backward
    for shape in shapes:
        x = torch.randn(shape["B"], shape["N"], shape["D"], device=report.device).bfloat16().requires_grad_()
        sides = {
            "forward": lambda x=x, k=shape["K"]: last_pool(x.detach(), k),
            "both": lambda x=x, k=shape["K"]: torch.autograd.grad(last_pool(x, k).sum(), x),
        }
        times = {
            side: statistics.median(each) for side, each in microseconds(sides, CURVE_ROUNDS, report.device).items()
        }
        middle_time = middle_time or times["both"] / x.numel()
        memory = peak_bytes(sides["both"], x.device)[0] / (x.numel() * x.element_size())
        where = "_".join(f"{letter}{size}" for letter, size in shape.items())
        report.keep(**{f"curve_us_{side}_{where}": each for side, each in times.items()})
        time = times["both"] / x.numel() / middle_time
        report.keep(**{f"curve_time_{where}": time, f"curve_memory_{where}": memory})
        print(f"    {where:<24} {times['forward']:9.1f} us {times['both']:9.1f} us {memory:7.3f}")


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Parity, goals, curves."""
    if report.device.type != "cuda":
        raise ValueError("bench_pooling_gpu.py needs a CUDA GPU, and there is none here; bench_pooling.py is for CPUs")
    torch.cuda.set_device(report.device)
    words = f"random tokens [{B}, {N}, {D}], bfloat16"
    report.describe(words, dataset=words, n_images=B, curves={"middle": MIDDLE, **CURVES})
    check_parity(report.device)
    bench_speed(args.rounds, report)
    bench_curves(report)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    run_bench(BenchParser("bench_pooling_gpu", __doc__, rounds=30), bench, argv)


if __name__ == "__main__":
    main()
