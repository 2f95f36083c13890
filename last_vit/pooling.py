"""LaSt pooling: a frequency-guided, channel-wise top-K mean over stable patches (paper Sec. 5.1).

The whole method: low pass along channels -> stability score -> the K most stable patches of each channel -> their mean.
It has no parameters and needs torch only. Here are its functions and what they accept; the arithmetic is in
pooling_formulas.py and, faster, in pooling_cpu.py and pooling_triton.py. Baselines are in token_pool.py, hosts in
adapters/.

    x_hat  = Re IFFT_D(g * FFT_D(x))                         low_pass
    S      = x_hat / (|x_hat - x| + eps)   variant "paper"   stability
    S      = x / |x_hat - x|               variant "release"
    I_K(j) = the K patches of largest S[:, j]                last_select
    Q[j]   = mean of x[i, j] over i in I_K(j)                last_pool
    v_i    = #{j : i in I_K(j)}                              vote_count

Letters: B images, N patches, D channels, K patches kept per channel, f frequency bin. `patch_tokens` is always
[B, N, D], the encoder's output after its final norm with the prefix tokens (CLS, registers) removed.
"""

import math
import operator
from types import ModuleType

import torch
from torch import Tensor, nn

from last_vit import pooling_formulas
from last_vit.pooling_formulas import EPS

VARIANTS = ("release", "paper")
_MAX = torch.finfo(torch.float32).max


def low_pass(patch_tokens: Tensor, sigma: float | None = None, variant: str = "release") -> Tensor:
    """Gaussian low pass of every patch along its channels (paper Sec. 5.1; the released kernel by default).

    Args:
        patch_tokens: [B, N, D], any float dtype.
        sigma: Standard deviation of the Gaussian in frequency bins; None is sqrt(D).
        variant: "release" or "paper"; they differ here only in the kernel's centre, and only for even D.

    Returns:
        [B, N, D] float32.

    Raises:
        ValueError: Wrong rank, integer input, unknown variant, sigma <= 0; NaN input under `detect_anomaly`.

    Example:
        >>> low_pass(torch.ones(1, 2, 9), variant="paper")[0, 0, :2]  # a constant is its own low pass
        tensor([1., 1.])
    """
    _check_tokens(patch_tokens)
    gain = _gain(patch_tokens, sigma, variant)
    with pooling_formulas.without_autocast(patch_tokens.device):
        return pooling_formulas.low_pass(patch_tokens.float(), gain)


def stability(patch_tokens: Tensor, sigma: float | None = None, variant: str = "release", eps: float = EPS) -> Tensor:
    """Signed stability score: high where a channel value is large and its own low pass changes it little.

    "release" scores `x / |x_hat - x|` (what the released weights were trained with), "paper"
    `x_hat / (|x_hat - x| + eps)`. Computed without gradient: the choice that it guides is not differentiable.

    Args:
        patch_tokens: [B, N, D], any float dtype.
        sigma: As in `low_pass`.
        variant: "release" or "paper".
        eps: The paper's epsilon; the release has none, so "release" ignores it.

    Returns:
        [B, N, D] float32, finite for finite input: 0/0 scores 0, x/0 scores +-the largest float32.

    Raises:
        ValueError: As `low_pass`.
    """
    _check_tokens(patch_tokens)
    gain = _gain(patch_tokens, sigma, variant)
    with torch.no_grad(), pooling_formulas.without_autocast(patch_tokens.device):
        score = pooling_formulas.score(patch_tokens.detach(), gain, variant, eps)
        return score.nan_to_num_(nan=0.0, posinf=_MAX, neginf=-_MAX)


def last_select(
    patch_tokens: Tensor, top_k: int | float, sigma: float | None = None, variant: str = "release"
) -> Tensor:
    """Indices of the K most stable patches of every channel (paper: I_K(j)).

    Args:
        patch_tokens: [B, N, D], any float dtype; B may be 0.
        top_k: Patches kept per channel: an int in [1, N], or a float in (0, 1], a share of N (at least one patch).
        sigma: As in `low_pass`.
        variant: "release" or "paper".

    Returns:
        long [B, K, D] in [0, N), distinct within a channel, in no particular order; carries no gradient.

    Raises:
        ValueError: As `low_pass`, and for a `top_k` outside its range.

    Example:
        >>> last_select(torch.rand(2, 16, 8), top_k=0.25).shape
        torch.Size([2, 4, 8])
    """
    _check_tokens(patch_tokens)
    k = resolve_top_k(top_k, patch_tokens.shape[1])
    sigma = _check_sigma(sigma, _num_channels(patch_tokens))
    return _way(patch_tokens, sigma, _check_variant(variant)).select(patch_tokens, k, sigma, variant)


def last_pool(patch_tokens: Tensor, top_k: int | float, sigma: float | None = None, variant: str = "release") -> Tensor:
    """The LaSt token: per channel, the mean over its K most stable patches (paper: Q_CLS).

    Gradients reach `patch_tokens` only through the gathered values. With K = N this is the mean over patches.

    Args:
        patch_tokens: [B, N, D], any float dtype.
        top_k: As in `last_select`.
        sigma: As in `low_pass`.
        variant: "release" or "paper".

    Returns:
        [B, D] in the dtype of `patch_tokens`.

    Raises:
        ValueError: As `last_select`.

    Example:
        >>> last_pool(torch.rand(2, 16, 8), top_k=1).shape
        torch.Size([2, 8])
    """
    _check_tokens(patch_tokens)
    k = resolve_top_k(top_k, patch_tokens.shape[1])
    sigma = _check_sigma(sigma, _num_channels(patch_tokens))
    _check_variant(variant)
    if k == patch_tokens.shape[1]:
        return patch_tokens.mean(dim=1)  # every patch is kept, whatever its score
    return _way(patch_tokens, sigma, variant).pool(patch_tokens, k, sigma, variant)


def vote_count(topk_idx: Tensor, num_patches: int) -> Tensor:
    """Number of channels that chose each patch (paper Sec. 5.1: v_i).

    Args:
        topk_idx: long [B, K, D] from `last_select`.
        num_patches: N.

    Returns:
        long [B, N] in [0, D]; every row sums to K * D.

    Example:
        >>> vote_count(torch.tensor([[[0, 2, 2]]]), num_patches=4)
        tensor([[1, 0, 2, 0]])
    """
    chosen = topk_idx.flatten(1)
    votes = torch.zeros(chosen.shape[0], num_patches, dtype=torch.long, device=chosen.device)
    ones = chosen.new_ones(chosen.shape[1])  # one row for all images: B rows of ones take half of the time at K = 98
    return votes.scatter_add_(1, chosen, ones.expand_as(chosen))


class LaStPool(nn.Module):
    """`last_pool` as a module without parameters or buffers, so no checkpoint ever changes.

    Args:
        top_k: As in `last_select`.
        sigma: As in `low_pass`.
        variant: "release" or "paper".
    """

    def __init__(self, top_k: int | float, sigma: float | None = None, variant: str = "release") -> None:
        super().__init__()
        self.top_k = _check_top_k(top_k)
        self.sigma = sigma
        self.variant = _check_variant(variant)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """[B, N, D] patch tokens -> [B, D] pooled token."""
        return last_pool(patch_tokens, self.top_k, self.sigma, self.variant)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"top_k={self.top_k}, sigma={self.sigma}, variant={self.variant!r}"


def resolve_top_k(top_k: int | float, num_patches: int) -> int:
    """K as a number of patches: an int as it is, a float as a share of `num_patches` (rounded, at least 1).

    Raises:
        ValueError: If `top_k` is no int in [1, num_patches] and no float in (0, 1].
    """
    _check_top_k(top_k)
    if isinstance(top_k, float):
        return max(1, round(top_k * num_patches))
    if top_k > num_patches:
        raise ValueError(
            f"top_k must be in [1, {num_patches}] (number of patches), got {top_k}; lower top_k, give it as a share "
            f"in (0, 1], or raise the resolution"
        )
    return top_k


def _way(patch_tokens: Tensor, sigma: float, variant: str) -> ModuleType:
    """The fastest module that takes these tokens; `select` and `pool` mean the same in each."""
    if patch_tokens.device.type == "cuda":
        from last_vit import pooling_triton

        return pooling_triton if pooling_triton.takes(patch_tokens, sigma, variant) else pooling_formulas
    if patch_tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return pooling_formulas
    from last_vit import pooling_cpu

    return pooling_cpu if pooling_cpu.takes(patch_tokens) else pooling_formulas


def _gain(patch_tokens: Tensor, sigma: float | None, variant: str) -> Tensor:
    """The low pass's gain for these tokens, once its options are checked."""
    num_channels = _num_channels(patch_tokens)
    checked = _check_sigma(sigma, num_channels), _check_variant(variant)
    return pooling_formulas.half_gain(num_channels, *checked, patch_tokens.device)


def _num_channels(patch_tokens: Tensor) -> int:
    """D as a number also where torch.compile has a symbol: gain and taps are made for one D."""
    return operator.index(patch_tokens.shape[2])


def _check_tokens(patch_tokens: Tensor) -> None:
    if patch_tokens.ndim != 3:
        raise ValueError(
            f"patch_tokens must be [B, N, D], got shape {tuple(patch_tokens.shape)}; flatten the grid and drop the "
            f"prefix tokens first"
        )
    if not patch_tokens.is_floating_point():
        raise ValueError(f"patch_tokens must be floating point, got {patch_tokens.dtype}; convert them with .float()")
    if patch_tokens.shape[1] == 0 or patch_tokens.shape[2] == 0:
        raise ValueError(f"patch_tokens must hold at least one patch and channel, got {tuple(patch_tokens.shape)}")
    if not torch.compiler.is_compiling() and torch.is_anomaly_enabled() and bool(patch_tokens.isnan().any()):
        raise ValueError("patch_tokens hold NaN (checked because torch's anomaly detection is on); look upstream")


def _check_top_k(top_k: int | float) -> int | float:
    if isinstance(top_k, bool) or not isinstance(top_k, int | float):
        raise ValueError(f"top_k must be an int (patches) or a float in (0, 1] (share of them), got {top_k!r}")
    if isinstance(top_k, float) and not 0.0 < top_k <= 1.0:
        raise ValueError(f"top_k as a float is a share of the patches in (0, 1], got {top_k}; use an int for a number")
    if top_k < 1 and isinstance(top_k, int):
        raise ValueError(f"top_k must be at least 1 patch, got {top_k}")
    return top_k


def _check_sigma(sigma: float | None, num_channels: int) -> float:
    if sigma is None:
        return math.sqrt(num_channels)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be a positive number of frequency bins or None for sqrt(D), got {sigma}")
    return float(sigma)


def _check_variant(variant: str) -> str:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    return variant
