"""LaSt pooling: a frequency-guided, channel-wise top-K mean over stable patches (paper Sec. 5.1).

    x_hat  = Re IFFT_D(g * FFT_D(x))                         low_pass
    S      = x_hat / (|x_hat - x| + eps)   variant "paper"   stability
    S      = x / |x_hat - x|               variant "release"
    I_K(j) = the K patches of largest S[:, j]                last_select
    Q[j]   = mean of x[i, j] over i in I_K(j)                last_pool
    v_i    = #{j : i in I_K(j)}                              vote_count

This is the whole method, without parameters. Faster ways to the same token are in kernels/, which it does not need.

Letters: B images, N patches, D channels, K patches kept per channel, f frequency bin. `patch_tokens` is always
[B, N, D] of any float type, the encoder's output after its final norm without prefix tokens (CLS, registers). `sigma`
is the Gaussian's standard deviation in frequency bins, sqrt(D) by default. Whatever a function cannot take ends in a
ValueError that says what it takes; that is NaN as well while torch's anomaly detection is on.
"""

import math
import operator
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.names import VARIANTS

EPS = 1e-6  # of the paper's score
TINY = torch.finfo(torch.float32).tiny
_BLOCK_NUMEL = 1 << 26  # selecting walks over the batch in blocks of about this size: its extra memory
# Type of device -> a module with faster `pool` and `select`, used where its `takes` says so, or None. All three are
# called with (patch_tokens, k, sigma, variant), checked, and k < N for `pool`. The one for a CPU is looked for.
KERNELS: dict[str, ModuleType | None] = {}


def low_pass(patch_tokens: Tensor, sigma: float | None = None, variant: str = "release") -> Tensor:
    """Gaussian low pass of every patch along its channels; float32 [B, N, D].

    The variants differ in the kernel's centre, and only for even D: "release" has it one bin off, as released.
    """
    sigma = _check(patch_tokens, sigma, variant)
    with _without_autocast(patch_tokens):
        return _low_pass(patch_tokens.float(), sigma, variant)


def stability(patch_tokens: Tensor, sigma: float | None = None, variant: str = "release", eps: float = EPS) -> Tensor:
    """Signed stability score: high where a channel value is large and its own low pass changes it little.

    float32 [B, N, D], finite for finite input: 0/0 scores 0, x/0 scores +-the largest float32. It has no gradient, for
    the choice that it guides has none. `eps` is the paper's; the released code has none.
    """
    sigma = _check(patch_tokens, sigma, variant)
    with torch.no_grad(), _without_autocast(patch_tokens):
        score = raw_score(patch_tokens.detach(), sigma, variant, eps)
        return score.nan_to_num_()  # inf becomes the largest number


def last_select(
    patch_tokens: Tensor, top_k: int | float, sigma: float | None = None, variant: str = "release"
) -> Tensor:
    """Indices of the K most stable patches of every channel (paper: I_K(j)).

    Args:
        patch_tokens: [B, N, D]; B may be 0.
        top_k: Patches kept per channel: an int in [1, N], or a float in (0, 1], a share of N (at least one patch).
        sigma: In frequency bins; None is sqrt(D).
        variant: "release" or "paper".

    Returns:
        long [B, K, D] in [0, N), distinct within a channel, in no particular order; carries no gradient.
    """
    sigma = _check(patch_tokens, sigma, variant)
    k = resolve_top_k(top_k, patch_tokens.shape[1])
    x = patch_tokens.detach()
    if kernels := _faster_way(x, k, sigma, variant):
        return kernels.select(x, k, sigma, variant)
    is_one_block = torch.compiler.is_compiling() or x.numel() <= _BLOCK_NUMEL  # traced, a loop would be unrolled
    with torch.no_grad(), _without_autocast(x):
        parts = [x] if is_one_block else x.split(max(1, _BLOCK_NUMEL // x[0].numel()))
        return torch.cat([_largest(raw_score(part, sigma, variant), k) for part in parts])


def last_pool(patch_tokens: Tensor, top_k: int | float, sigma: float | None = None, variant: str = "release") -> Tensor:
    """The LaSt token: per channel, the mean over its K most stable patches (paper: Q_CLS).

    [B, D] in the dtype of `patch_tokens`, arguments as `last_select`. Gradients reach `patch_tokens` only through the
    gathered values. With K = N this is the mean over patches.

    Example:
        >>> last_pool(torch.rand(2, 16, 8), top_k=1).shape
        torch.Size([2, 8])
    """
    sigma = _check(patch_tokens, sigma, variant)
    k = resolve_top_k(top_k, patch_tokens.shape[1])
    if k == patch_tokens.shape[1]:
        return patch_tokens.mean(dim=1)  # every patch is kept, whatever its score
    if kernels := _faster_way(patch_tokens, k, sigma, variant):
        return kernels.pool(patch_tokens, k, sigma, variant)
    return patch_tokens.gather(1, last_select(patch_tokens, k, sigma, variant)).mean(dim=1)


def vote_count(topk_idx: Tensor, num_patches: int) -> Tensor:
    """Number of channels that chose each patch: long [B, K, D] of `last_select` -> long [B, N] that sum to K * D.

    Example:
        >>> vote_count(torch.tensor([[[0, 2, 2]]]), num_patches=4)
        tensor([[1, 0, 2, 0]])
    """
    if not isinstance(topk_idx, Tensor) or topk_idx.ndim != 3 or topk_idx.dtype != torch.long:
        raise ValueError(f"topk_idx must be long [B, K, D], got {describe(topk_idx)}")
    chosen = topk_idx.flatten(1)
    ones = chosen.new_ones(chosen.shape[1])  # one row for all images: B rows of ones take half of the time at K = 98
    try:
        return chosen.new_zeros(chosen.shape[0], num_patches).scatter_add_(1, chosen, ones.expand_as(chosen))
    except (RuntimeError, TypeError) as error:  # indices outside; on a GPU torch's own assertion stops the process
        raise ValueError(f"topk_idx must lie in [0, num_patches), num_patches is {num_patches!r}: {error}") from error


class LaStPool(nn.Module):
    """`last_pool` as a module without parameters or buffers, so no checkpoint ever changes; arguments as there."""

    def __init__(self, top_k: int | float, sigma: float | None = None, variant: str = "release") -> None:
        super().__init__()
        _check_options(sigma, variant)
        self.top_k, self.sigma, self.variant = _check_top_k(top_k), sigma, variant

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """[B, N, D] patch tokens -> [B, D] pooled token."""
        return last_pool(patch_tokens, self.top_k, self.sigma, self.variant)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"top_k={self.top_k}, sigma={self.sigma}, variant={self.variant!r}"


def resolve_top_k(top_k: int | float, num_patches: int) -> int:
    """K as a number of patches: an int as it is, a float as a share of `num_patches` (rounded, at least 1)."""
    if isinstance(_check_top_k(top_k), float):
        return max(1, round(top_k * num_patches))
    if top_k > num_patches:
        raise ValueError(
            f"top_k must be in [1, {num_patches}] (number of patches), got {top_k}; lower top_k, give it as a share "
            f"in (0, 1], or raise the resolution"
        )
    return top_k


def _faster_way(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> ModuleType | None:
    device = patch_tokens.device.type
    if device == "cpu" and device not in KERNELS and not torch.compiler.is_compiling():
        try:
            KERNELS[device] = import_module("last_vit.kernels.cpu")
        except ModuleNotFoundError:  # no such folder, or no numpy
            KERNELS[device] = None
    kernels = KERNELS.get(device)
    return kernels if kernels is not None and kernels.takes(patch_tokens, k, sigma, variant) else None


def raw_score(x: Tensor, sigma: float, variant: str, eps: float = EPS) -> Tensor:
    """`stability` before it is made finite: x/0 ranks as +-inf, NaN as the largest, so that the token shows it."""
    x = x.float()
    low_freq = _low_pass(x, sigma, variant)
    if variant == "paper":
        return low_freq / (low_freq - x).abs_().add_(eps)
    return x / low_freq.sub_(x).abs_().clamp_min_(TINY)  # the clamp makes 0/0 a zero


def _low_pass(x: Tensor, sigma: float, variant: str) -> Tensor:
    if x.numel() == 0:
        return x.clone()  # the FFT refuses an empty batch
    gain = half_gain(x.shape[-1], sigma, variant, x.device).float()
    return torch.fft.irfft(torch.fft.rfft(x, dim=-1).mul_(gain), n=x.shape[-1], dim=-1)


def half_gain(num_channels: int, sigma: float, variant: str, device: torch.device) -> Tensor:
    """Even part of the Gaussian gain at f = 0 .. D // 2, float64 [D // 2 + 1].

    It is all that the real part of the inverse FFT sees, so a real FFT is exact, for the released kernel too.
    """
    freq = torch.arange(num_channels // 2 + 1, dtype=torch.float64, device=device)
    # The release centres its kernel on the fftshifted axis with integer division: even D puts the peak at f = -1.
    offset = 1.0 if variant == "release" and num_channels % 2 == 0 else 0.0
    left, right = (torch.exp(-0.5 * ((freq + shift) / sigma) ** 2) for shift in (-offset, offset))
    gain = 0.5 * (left + right)
    if num_channels % 2 == 0:
        gain[-1] = left[-1]  # Nyquist has no mirror bin: it stands at f = -D/2 alone
    return gain


def _largest(score: Tensor, k: int) -> Tensor:
    """[B, N, D] scores -> long [B, k, D] indices of the largest along dim 1."""
    return score.topk(k, dim=1, sorted=False).indices if k > 1 else score.max(dim=1, keepdim=True).indices


def _without_autocast(x: Tensor) -> torch.autocast:
    """While it lasts, float32 stays float32, whatever autocast says."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _check(patch_tokens: Tensor, sigma: float | None, variant: str) -> float:
    """Sigma as a number, once tokens, sigma and variant are found right."""
    is_float = isinstance(patch_tokens, Tensor) and patch_tokens.is_floating_point()
    if not is_float or patch_tokens.ndim != 3 or 0 in patch_tokens.shape[1:]:
        expected = "floating point [B, N, D] without prefix tokens, with at least one patch and channel"
        raise ValueError(f"patch_tokens must be {expected}, got {describe(patch_tokens)}")
    if not torch.compiler.is_compiling() and torch.is_anomaly_enabled() and bool(patch_tokens.isnan().any()):
        raise ValueError("patch_tokens hold NaN (checked because torch's anomaly detection is on); look upstream")
    _check_options(sigma, variant)
    num_channels = operator.index(patch_tokens.shape[2])  # a number also where torch.compile has a symbol
    return math.sqrt(num_channels) if sigma is None else float(sigma)


def describe(value: Any) -> str:
    """What was given in place of a tensor that is asked for."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_top_k(top_k: int | float) -> int | float:
    is_count = isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1
    if not is_count and not (isinstance(top_k, float) and 0.0 < top_k <= 1.0):
        raise ValueError(f"top_k must be an int, at least 1 (patches), or a float in (0, 1] (share), got {top_k!r}")
    return top_k


def _check_options(sigma: float | None, variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if sigma is not None and not (isinstance(sigma, int | float) and 0 < sigma < math.inf):
        raise ValueError(f"sigma must be a positive number of frequency bins or None for sqrt(D), got {sigma!r}")
