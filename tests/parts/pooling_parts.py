"""Golden vectors of the pooling, tokens to pool, and the low pass by its definition."""

from pathlib import Path

import numpy as np
import torch

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "last_pool.npz")


def rand(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference_low_pass(x, variant, sigma=None):
    """DESIGN section 2 word for word in float64: complex FFT, explicit frequencies, full-length gain."""
    d = x.shape[-1]
    sigma = sigma or d**0.5
    freq = torch.fft.fftfreq(d, 1 / d, dtype=torch.float64)
    if variant == "release" and d % 2 == 0:
        freq = freq + 1
    gain = torch.exp(-0.5 * (freq / sigma) ** 2)
    return torch.fft.ifft(gain * torch.fft.fft(x.double(), dim=-1), dim=-1).real
