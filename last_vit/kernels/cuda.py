"""LaSt pooling on a CUDA GPU: the same choice as the formulas, without a Fourier transform or stored scores.

The kernels read x once. For K above 1 the scores of all patches stay in one block's registers, so more than 256 patches
are left to the formulas. Beside the result they write the kept patch (K = 1) or one bit per value of x, which is all
that the backward pass needs, so x need not be kept for it. To torch.compile pooling is one operator; no call
waits for the GPU, so it can be captured in a CUDA graph once it has run outside of one (that compiles the kernels and
makes the tap matrix).

Against the formulas: scores differ by rounding (about that of the float32 FFT), equal scores keep the first patches,
and a NaN or inf in x spreads over the channels around it instead of all.
"""

from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from last_vit.kernels import select as kernels
from last_vit.kernels.taps import BLOCK_CHANNELS, MAX_REACH, TapMatrix, low_pass_taps, tap_matrix
from last_vit.pooling import EPS

MAX_CHANNELS = 4096
MAX_PATCHES = 16384  # for K = 1
MAX_RESIDENT = 256  # for more: patches whose scores fit in the registers of one block
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Chosen by counting (registers, shared memory and instructions of the compiled kernels), not by measurement.
_PROGRAMS_PER_GPU_CORE = 4
_SPREAD_CHANNELS = 128


def takes(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> bool:
    """Whether `pool` and `select` can take these tokens, [B, N, D].

    Not: float64, very many channels or patches (K above 1: more than 256), transforms of torch.func, forward-mode
    gradients, and low passes whose taps reach beyond 96 channels (a small sigma, or one that cuts the Gaussian off).
    """
    batch, num_patches, num_channels = patch_tokens.shape
    return (
        patch_tokens.dtype in _DTYPES
        and num_channels <= MAX_CHANNELS
        and num_patches <= (MAX_PATCHES if k == 1 else MAX_RESIDENT)
        and batch < 1 << 16
        and _is_plain(patch_tokens)
        and _has_taps(num_channels, sigma, variant, patch_tokens.dtype, patch_tokens.device)
    )


def pool(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_pool` for checked input and 1 <= k < N: [B, D] in the dtype of `patch_tokens`."""
    return torch.ops.last_vit.pool_on_gpu(patch_tokens, k, sigma, variant)[0]


def select(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_select` for checked input: long [B, K, D], patches in rising order."""
    _, kept = torch.ops.last_vit.pool_on_gpu(patch_tokens.detach(), k, sigma, variant)
    if k == 1:
        return kept.long()[:, None]
    bits = (kept[:, :, None] >> torch.arange(32, device=kept.device)[:, None]) & 1  # [B, words, 32, D]
    is_kept = bits.flatten(1, 2)[:, : patch_tokens.shape[1]]
    return is_kept.argsort(dim=1, descending=True, stable=True)[:, :k]


@torch.library.custom_op("last_vit::pool_on_gpu", mutates_args=())
def pool_on_gpu(x: Tensor, k: int, sigma: float, variant: str) -> tuple[Tensor, Tensor]:
    """(pooled [B, D], kept): kept is the patch, int32 [B, D], for k = 1, else bits, int32 [B, cdiv(N, 32), D]."""
    batch, _, num_channels = x.shape
    x = _with_plain_rows(x)
    pooled = x.new_empty(batch, num_channels)
    kept = x.new_empty(_kept_shape(x, k), dtype=torch.int32)
    if batch == 0:
        return pooled, kept
    matrix = tap_matrix(num_channels, sigma, variant, x.dtype, x.device)
    with torch.cuda.device_of(x):
        if k == 1:
            _pool_best(x, matrix, variant, pooled, kept)
        else:
            _pool_resident(x, k, matrix, variant, pooled, kept)
    return pooled, kept


@pool_on_gpu.register_fake
def _(x: Tensor, k: int, sigma: float, variant: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[2]), x.new_empty(_kept_shape(x, k), dtype=torch.int32)


@torch.library.custom_op("last_vit::spread_on_gpu", mutates_args=())
def spread_on_gpu(grad: Tensor, kept: Tensor, k: int, num_patches: int) -> Tensor:
    """[B, N, D]: grad [B, D] / k at the kept positions, zeros elsewhere."""
    grad = grad.contiguous()
    batch, num_channels = grad.shape
    out = grad.new_empty(batch, num_patches, num_channels)
    if batch:
        grid = (-(-num_channels // _SPREAD_CHANNELS) * -(-num_patches // 32), batch)
        with torch.cuda.device_of(grad):
            kernels.spread_gradient[grid](
                grad, kept, out, num_patches, k, D=num_channels, IS_BITS=kept.ndim == 3, BLOCK=_SPREAD_CHANNELS
            )
    return out


@spread_on_gpu.register_fake
def _(grad: Tensor, kept: Tensor, k: int, num_patches: int) -> Tensor:
    return grad.new_empty(grad.shape[0], num_patches, grad.shape[1])


def _keep_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    x, ctx.k, _, _ = inputs
    ctx.num_patches = x.shape[1]
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, _: None) -> tuple:
    if grad is None:
        return None, None, None, None
    (kept,) = ctx.saved_tensors
    return spread_on_gpu(grad, kept, ctx.k, ctx.num_patches), None, None, None


pool_on_gpu.register_autograd(_backward, setup_context=_keep_for_backward)


def _keep_for_second_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    _, kept, ctx.k, ctx.num_patches = inputs
    ctx.save_for_backward(kept)


def _second_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
    """The gradient is linear in the token's: the mean over the kept patches, in torch, for few ask for it."""
    (kept,) = ctx.saved_tensors
    is_kept = spread_on_gpu(torch.ones_like(grad[:, 0]), kept, 1, ctx.num_patches)
    return (grad * is_kept).sum(1) / ctx.k, None, None, None


spread_on_gpu.register_autograd(_second_backward, setup_context=_keep_for_second_backward)


def _pool_best(x: Tensor, matrix: TapMatrix, variant: str, pooled: Tensor, kept: Tensor) -> None:
    """K = 1: one pass; few images of many patches are split, and the parts joined by a maximum."""
    patches = _patches_at_a_time(x)
    blocks, walkers, splits = _grid(x, patches)
    packed = None
    if splits > 1:
        below_all = torch.iinfo(torch.int64).min + 0x7FFFFFFF  # of patch 0
        packed = torch.full_like(kept, below_all, dtype=torch.int64)
    kernels.best_patch[(blocks, walkers, splits)](
        x, matrix.pieces, pooled, kept, packed, *_numbers(x, matrix),
        **_shape(x, matrix, variant), P=patches, IS_SPLIT=splits > 1, num_warps=4, num_stages=1,
    )  # fmt: skip
    if packed is not None:
        kept.copy_(0x7FFFFFFF - (packed & 0xFFFFFFFF))
        pooled.copy_(x.gather(1, kept.long()[:, None])[:, 0])


def _pool_resident(x: Tensor, k: int, matrix: TapMatrix, variant: str, pooled: Tensor, kept: Tensor) -> None:
    """1 < K < N <= 256: one pass."""
    blocks, walkers, _ = _grid(x, MAX_RESIDENT)
    kernels.best_patches[(blocks, walkers)](
        x, matrix.pieces, pooled, kept, k, *_numbers(x, matrix),
        **_shape(x, matrix, variant), P=max(32, 1 << (x.shape[1] - 1).bit_length()),
        PART=_patches_at_a_time(x), num_warps=4, num_stages=1,
    )  # fmt: skip


def _grid(x: Tensor, patches: int) -> tuple[int, int, int]:
    """(blocks of channels, walkers over the batch, splits of the patches) that fill the GPU."""
    batch, num_patches, num_channels = x.shape
    blocks = -(-num_channels // BLOCK_CHANNELS)
    wanted = _PROGRAMS_PER_GPU_CORE * _num_gpu_cores(x.device)
    splits = min(wanted // (blocks * batch), num_patches // (4 * patches))  # four turns pay for reading the taps
    return blocks, min(batch, -(-wanted // blocks)), max(1, splits)


def _numbers(x: Tensor, matrix: TapMatrix) -> tuple[int | float, ...]:
    return x.shape[0], x.shape[1], x.stride(0), x.stride(1), 1 / matrix.factor, EPS


def _shape(x: Tensor, matrix: TapMatrix, variant: str) -> dict[str, int | bool]:
    """What a kernel is compiled for, apart from the patches at a time."""
    _, height, window = matrix.pieces.shape
    return {"D": x.shape[2], "C": height, "W": window, "LEAD": matrix.lead, "PAPER": variant == "paper"}


def _patches_at_a_time(x: Tensor) -> int:
    """As many as leave room in shared memory for the taps and windows of four programs (float32: of two)."""
    return 32 if x.dtype == torch.float32 else 64


def _kept_shape(x: Tensor, k: int) -> tuple[int, ...]:
    batch, num_patches, num_channels = x.shape
    return (batch, num_channels) if k == 1 else (batch, (num_patches + 31) // 32, num_channels)


def _with_plain_rows(x: Tensor) -> Tensor:
    """Tokens whose channels lie side by side, a copy if need be; `tokens[:, 1:]` is read where it lies."""
    is_plain = x.stride(2) == 1 and x.stride(1) * x.shape[1] < 1 << 31
    return x if is_plain else x.contiguous()


def _is_plain(x: Tensor) -> bool:
    """No transform of torch.func, forward-mode gradient or fake tensor: for these are the formulas."""
    if torch.compiler.is_compiling():
        return True
    try:
        return forward_ad.unpack_dual(x).tangent is None and x.data_ptr() is not None
    except RuntimeError:  # it has no memory
        return False


@torch.compiler.assume_constant_result
def _has_taps(num_channels: int, sigma: float, variant: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the taps are few; then their matrix is made now: CUDA graphs of torch.compile would overwrite it."""
    if len(low_pass_taps(num_channels, sigma, variant)) - 1 > MAX_REACH:
        return False
    if device.type != "cuda" or torch.cuda.is_available():  # a fake tensor's GPU need not exist
        tap_matrix(num_channels, sigma, variant, dtype, device)
    return True


@cache
def _num_gpu_cores(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
