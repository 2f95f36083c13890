"""LaSt pooling by its formulas: for every device, float type and transform of torch, and the faster ways' reference.

`select` and `pool` mean the same here, in pooling_cpu.py and in pooling_triton.py; pooling.py checks the input, then
calls those of one of the three. The letters are those of pooling.py.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

EPS = 1e-6  # of the paper's score
TINY = torch.finfo(torch.float32).tiny
# Selecting walks over the batch in blocks of about this many elements; the extra memory is that of one block.
_BLOCK_NUMEL = 1 << 26


def pool(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_pool` for checked input: [B, D] in the dtype of `patch_tokens`."""
    return patch_tokens.gather(1, select(patch_tokens, k, sigma, variant)).mean(dim=1)


def select(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_select` for checked input: long [B, k, D] without gradient, in no particular order."""
    batch, num_patches, num_channels = patch_tokens.shape
    gain = half_gain(num_channels, sigma, variant, patch_tokens.device)
    x = patch_tokens.detach()
    # A traced loop would be unrolled, so tracing takes all images at once.
    block = max(1, batch if torch.compiler.is_compiling() else _BLOCK_NUMEL // (num_patches * num_channels))
    with torch.no_grad(), without_autocast(x.device):
        if batch <= block:
            return _largest(score(x, gain, variant), k)
        block = min(block, (batch + 1) // 2)  # beside the indices of all images, the buffers of at most half of them
        topk_idx = torch.empty(batch, k, num_channels, dtype=torch.long, device=x.device)
        for start in range(0, batch, block):
            topk_idx[start : start + block] = _largest(score(x[start : start + block], gain, variant), k)
        return topk_idx


def score(x: Tensor, gain: Tensor, variant: str, eps: float = EPS) -> Tensor:
    """`pooling.stability` that still ranks x/0 as +-inf; besides the spectrum one float32 buffer, for "paper" two.

    Args:
        x: [B, N, D], any float dtype, autocast off.
        gain: Of `half_gain`.
        variant: "release" or "paper".
        eps: Of variant "paper".
    """
    x = x.float()
    low_freq = low_pass(x, gain)
    if variant == "paper":
        return low_freq.div_((low_freq - x).abs_().add_(eps))
    distance = low_freq.sub_(x).abs_().clamp_min_(TINY)  # the clamp makes 0/0 a zero
    return torch.div(x, distance, out=None if torch.compiler.is_compiling() else distance)


def low_pass(x: Tensor, gain: Tensor) -> Tensor:
    """Multiply the half spectrum of float32 `x` by a real gain; the same shape, new memory."""
    if x.numel() == 0:
        return x.clone()  # the FFT refuses an empty batch
    return torch.fft.irfft(torch.fft.rfft(x, dim=-1).mul_(gain), n=x.shape[-1], dim=-1)


def half_gain(num_channels: int, sigma: float, variant: str, device: torch.device) -> Tensor:
    """Even part of the Gaussian gain at f = 0 .. D // 2, float32 [D // 2 + 1].

    The real part of the inverse FFT only sees the even part of the gain, so a real FFT with that even part on the half
    spectrum is exact, also for the released kernel, whose peak sits one bin off the centre for even D.
    """
    # Fake tensors mix with no others: what was made of them must not stay, and what stayed must not meet them.
    if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
        return _half_gain_cached.__wrapped__(num_channels, sigma, variant, device)
    with torch.inference_mode(False):  # a cached inference tensor would break a later backward through `low_pass`
        return _half_gain_cached(num_channels, sigma, variant, device)


@lru_cache(maxsize=64)
def _half_gain_cached(num_channels: int, sigma: float, variant: str, device: torch.device) -> Tensor:
    return half_gain64(num_channels, sigma, variant, device).float()


def half_gain64(num_channels: int, sigma: float, variant: str, device: torch.device) -> Tensor:
    """`half_gain` in float64."""
    freq = torch.arange(num_channels // 2 + 1, dtype=torch.float64, device=device)
    # The release centres its kernel on the fftshifted axis with integer division: even D puts the peak at f = -1.
    offset = 1.0 if variant == "release" and num_channels % 2 == 0 else 0.0
    left, right = (torch.exp(-0.5 * ((freq + shift) / sigma) ** 2) for shift in (-offset, offset))
    gain = 0.5 * (left + right)
    if num_channels % 2 == 0:
        gain[-1] = left[-1]  # Nyquist has no mirror bin: it stands at f = -D/2 alone
    return gain


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """While it lasts, float32 stays float32, whatever autocast says."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _largest(score: Tensor, k: int) -> Tensor:
    """[B, N, D] scores -> long [B, k, D] indices of the largest along dim 1."""
    return score.topk(k, dim=1, sorted=False).indices if k > 1 else score.max(dim=1, keepdim=True).indices
