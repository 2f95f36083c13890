"""LaSt pooling's CUDA kernels against one read of x and the straightforward version.

What is counted, not measured, for B=256, N=196, D=768 in bfloat16 stands in docs/speed.md. Times are CUDA events around
one call, after the caches were flushed, ours also as a CUDA graph (without the time that Python takes to launch).
Whether both sides agree is for tests/last_vit/test_kernels_cuda.py to say, which looks at more of it on a GPU.
"""

import statistics
from collections.abc import Callable, Mapping

import torch
from bench_pooling import straightforward_pool
from bench_report import BenchReport, ratio
from torch import Tensor

from last_vit import last_pool, use_fused_pool

B, N, D = 256, 196, 768
TOP_K = (1, 7, 98, N)
READS = {1: 1.5, 98: 4.0}  # at most so many times one read of x
SPEEDUP = 10.0
FLUSH_BYTES = 1 << 32  # a millisecond of writing


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


def bench(report: BenchReport) -> None:
    """The goals: against one read of x and against the straightforward version."""
    if report.device.type != "cuda":
        raise ValueError("bench_pooling_cuda needs a CUDA GPU, and there is none here; bench_pooling is for CPUs")
    words = f"random tokens [{B}, {N}, {D}], bfloat16"
    report.describe(words, dataset=words, n_images=B)
    use_fused_pool(True)
    x = torch.randn(B, N, D, device=report.device).bfloat16()
    leaf, copied = x.clone().requires_grad_(), torch.empty_like(x)

    def plain(tokens: Tensor, top_k: int) -> Tensor:
        return straightforward_pool(tokens.float(), top_k).to(tokens.dtype)  # CUDA has no bfloat16 FFT

    for top_k in TOP_K:
        sides: dict[str, Callable[[], object]] = {"copy": lambda: copied.copy_(x)}
        for name, pool in (("", last_pool), ("_plain", plain)):
            sides[f"forward{name}"] = lambda p=pool, k=top_k: p(x, k)
            sides[f"both{name}"] = lambda p=pool, k=top_k: torch.autograd.grad(p(leaf, k).sum(), leaf)
        sides["forward_graph"] = as_graph(sides["forward"])
        times = microseconds(sides, 30, report.device)
        read = [each / 2 for each in times["copy"]]
        reads = ratio(times["forward_graph"], read)
        report.add(f"reads_k{top_k}", f"K={top_k}: forward in reads of x", reads, limit=READS.get(top_k))
        goal = None if top_k == N else SPEEDUP
        for name, what in (("forward", "forward"), ("both", "forward and backward")):
            words = f"K={top_k}: {what} against the straightforward version"
            report.add(f"{name}_k{top_k}", words, ratio(times[f"{name}_plain"], times[name]), goal=goal)
        for name, each in times.items():
            print(f"    {name:<20} {statistics.median(each):8.1f} us ({min(each):.1f} to {max(each):.1f})")
