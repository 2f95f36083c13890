"""Operations of a training step, and what a device could do in its time. Imported by benches only.

Model FLOPs are the matrix products and convolutions of the forward and backward pass as torch's FlopCounterMode counts
them, attention as plain products, so that nothing that a kernel computes twice counts twice. LaSt itself adds none of
these: its FFT and its choice of patches are not counted, and a model with it has the FLOPs of one with CLS.
"""

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 peak in TFLOP/s from NVIDIA's data sheets, by the beginning of torch.cuda.get_device_name().
PEAK_TFLOPS = {
    "NVIDIA H200 NVL": 835.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA A100": 312.0,
}
_SIDE = 8192


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name; None for one that the table does not know."""
    fitting = [name for name in PEAK_TFLOPS if device_name.startswith(name)]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def count_flops(step: Callable[[], object]) -> int:
    """FLOPs of one call, a multiplication and an addition counting as two; not of compiled code, which hides them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measured_tflops(device: torch.device, seconds: float = 0.5) -> float:
    """TFLOP/s of a large bfloat16 product on a GPU: what of the peak a program gets at best."""
    left, right = (torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    calls, best = 10, 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            left @ right
        torch.cuda.synchronize(device)
        best = max(best, calls * 2 * _SIDE**3 / (time.perf_counter() - start) / 1e12)
    return best
