"""Time and memory of LaSt pooling on a CPU against the straightforward version, and of counting votes.

The straightforward version is the formula as one would first write it: complex FFT inside autograd, fftshift, a full
sorted topk. Both sides run in turn, float32, forward and backward, on one thread and on two, in several processes one
after the other: whether the C library maps a tensor's memory anew at each call is decided by how the heap happens to
lie, and a side that allocates much is then half as fast again or not, for as long as its process lives.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from bench_report import BenchReport, alternate, peak_bytes, ratio
from torch import Tensor

from last_vit import last_pool, last_select, vote_count

B, N, D = 16, 196, 768
TOP_KS, GOAL, COUNTING_GOAL = (1, 7, 98), 1.5, 100.0  # the goals are for one thread


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


def speed_times(rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of the straightforward version and of ours for every K; for a process of its own."""
    torch.set_num_threads(threads)
    x = torch.randn(B, N, D, requires_grad=True)
    sides: dict[str, Callable[[], object]] = {}
    for top_k in TOP_KS:
        sides |= {f"plain{top_k}": step(straightforward_pool, x, top_k), f"ours{top_k}": step(last_pool, x, top_k)}
    return alternate(sides, rounds, warm_calls=1)


def counted_in_a_loop(topk_idx: Tensor, num_patches: int) -> Tensor:
    """`vote_count`, image by image and channel by channel: long [B, K, D] -> long [B, N]."""
    votes = torch.zeros(len(topk_idx), num_patches, dtype=torch.long, device=topk_idx.device)
    for image in range(topk_idx.shape[0]):
        for channel in range(topk_idx.shape[2]):
            votes[image, topk_idx[image, :, channel]] += 1
    return votes


def bench(report: BenchReport) -> None:
    """Speed, memory, votes."""
    words = f"random tokens [{B}, {N}, {D}], float32"
    report.describe(words, dataset=words, n_images=B)
    processes, rounds = report.size(3, 15), report.size(2, 3)
    context = multiprocessing.get_context("spawn")
    for threads in (1, 2):
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as executor:
            runs = list(executor.map(speed_times, [rounds] * processes, [threads] * processes))
        times = {side: [seconds for run in runs for seconds in run[side]] for side in runs[0]}
        for top_k in TOP_KS:
            words = f"pooling against its straightforward version, K = {top_k}, {threads} thread{'s' * (threads > 1)}"
            speedup = ratio(times[f"plain{top_k}"], times[f"ours{top_k}"])
            report.add(f"speedup_k{top_k}_threads{threads}", words, speedup, goal=GOAL if threads == 1 else None)
    x = torch.randn(B, N, D, requires_grad=True)
    for top_k in TOP_KS:
        ours, plain = (peak_bytes(step(pool, x, top_k)) for pool in (last_pool, straightforward_pool))
        words = f"memory of the straightforward version over pooling's, K = {top_k}"
        report.add(f"memory_k{top_k}", words, plain / ours)
    topk_idx = last_select(x.detach(), 98)
    if not torch.equal(vote_count(topk_idx, N), counted_in_a_loop(topk_idx, N)):
        raise RuntimeError("vote_count and the loop count differently")
    sides = {
        "loop": lambda: counted_in_a_loop(topk_idx, N),
        "ours": lambda: [vote_count(topk_idx, N) for _ in range(20)],
    }
    times = alternate(sides, report.size(2, 5))
    counting = ratio(times["loop"], times["ours"]).times(20)
    report.add("counting", "votes against a loop over images and channels, K = 98", counting, goal=COUNTING_GOAL)
