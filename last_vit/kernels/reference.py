"""What the kernels write, in torch; and the first call of each sort of kernel held against it and the formulas.

These kernels have been tested in Triton's interpreter more than on GPUs, and a wrong number must not pass for a token,
a gradient or a choice. A sort is what Triton compiles for, as far as it changes the code that runs: see `check_pool`.
"""

import torch
from torch import Tensor

from last_vit import pooling_formulas

_LEAST_AGREEMENT = 0.99  # share of channels; near ties that rounding decides are far fewer than the rest
_agreed: set[tuple] = set()  # sorts whose first call agreed


def unpack_kept(kept: Tensor, num_patches: int) -> Tensor:
    """Whether a patch is kept, bool [B, N, D], from what a kernel wrote (kernels/kept.py says how)."""
    if kept.ndim == 2:
        return torch.arange(num_patches, device=kept.device)[:, None] == kept[:, None]
    bits = kept[:, :, None] >> torch.arange(32, device=kept.device, dtype=torch.int32)[:, None]
    return (bits & 1).flatten(1, 2)[:, :num_patches] == 1


def check_pool(
    x: Tensor, k: int, sigma: float, variant: str, pooled: Tensor, kept: Tensor, window: int, is_split: bool
) -> None:
    """Hold the first image's token and choice against the formulas in float64, once per sort of kernel.

    Args:
        x: [B, N, D], B > 0.
        k: Patches kept.
        sigma: Standard deviation in frequency bins.
        variant: "release" or "paper".
        pooled: [B, D].
        kept: As the kernel wrote it.
        window: Channels that a block reads.
        is_split: The patches of an image were shared among blocks.

    Raises:
        RuntimeError: They differ.
    """
    size = min((x.shape[1] - 1).bit_length(), 9)  # up to 256 patches each power of two has a kernel
    sort = ("pool", x.device, x.dtype, x.shape[2], size, k == 1, variant, window, is_split)
    if _is_known(sort, x):
        return
    expected = pooling_formulas.pool(x[:1].double(), k, sigma, variant)
    if not expected.isfinite().all():
        return  # says nothing; the next call may
    is_kept = unpack_kept(kept[:1], x.shape[1])
    chosen = torch.where(is_kept, x[:1].double(), 0.0).sum(1) / k
    right = _is_close(pooled[:1], expected) & _is_close(pooled[:1], chosen) & (is_kept.sum(1) == k)
    _note(sort, float(right.double().mean()), "tokens", f"x {list(x.shape)}, {x.dtype}, K={k}, {x.device}")


def check_spread(grad: Tensor, kept: Tensor, k: int, out: Tensor) -> None:
    """As `check_pool`, for the gradient [B, N, D] of the first image."""
    sort = ("spread", out.device, out.dtype, out.shape[2], kept.ndim)
    if _is_known(sort, out) or not grad[:1].isfinite().all():
        return
    expected = torch.where(unpack_kept(kept[:1], out.shape[1]), grad[:1, None].double() / k, 0.0)
    right = _is_close(out[:1], expected) & ((out[:1] == 0) == (expected.to(out.dtype) == 0))
    _note(sort, float(right.all(1).double().mean()), "gradients", f"{list(out.shape)}, {out.dtype}, {out.device}")


def check_list(kept: Tensor, topk_idx: Tensor, num_patches: int) -> None:
    """As `check_pool`, for the list of patches [B, K, D] of the first image."""
    sort = ("list", kept.device, topk_idx.shape[2])
    if _is_known(sort, kept):
        return
    is_kept = unpack_kept(kept[:1], num_patches)
    listed = torch.zeros_like(is_kept).scatter_(1, topk_idx[:1].clamp(0, num_patches - 1), True)
    right = (listed == is_kept).all(1)
    _note(sort, float(right.double().mean()), "lists of patches", f"{list(topk_idx.shape)}, {kept.device}")


def _is_known(sort: tuple, like: Tensor) -> bool:
    """Whether there is nothing to do; a CUDA graph that is being captured can wait for nothing."""
    return sort in _agreed or (like.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_close(found: Tensor, expected: Tensor) -> Tensor:
    tolerance = 1e-2 * expected.abs() + 1e-3 * expected.abs().max()
    return (found.double() - expected).abs() <= tolerance


def _note(sort: tuple, agreement: float, what: str, where: str) -> None:
    if agreement < _LEAST_AGREEMENT:
        raise RuntimeError(
            f"{what} of LaSt's Triton kernels agree with the formulas in {agreement:.1%} of the channels only "
            f"({where}): set LAST_VIT_TRITON=0 and report it with GPU and Triton version"
        )
    _agreed.add(sort)
