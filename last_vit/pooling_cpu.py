"""LaSt pooling on a CPU: the same choice as the formulas, several times as fast.

Three parts of the formulas are slow on a CPU, so they are done differently here:

- The low pass by FFT. It is a convolution with few taps (pooling_taps.py), so x_hat - x of 32 neighbouring channels is
  one small matrix product with the window of channels around them. Long taps, few channels, or float32 products that
  the user has allowed to be less exact go through the FFT.
- topk over patches, which lie a row of channels apart. The K-th score of a channel is read from a sorted copy of its
  scores (numpy sorts short rows with vector instructions, torch does not), and all scores that reach it are kept.
- The gather of the kept values and the scatter of their gradients: the kept patches are a mask, one byte per value.

Of equal scores the first patches are kept. Blocks of images and channels stay in a core's cache.

Letters in shapes: b images and C channels of a block.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from last_vit.plain_tensors import is_plain
from last_vit.pooling_formulas import EPS, TINY, half_gain, low_pass
from last_vit.pooling_taps import low_pass_taps

try:
    import numpy as np
except ImportError:  # torch runs without it, and so do the formulas
    np = None

_PANEL = 32  # channels per matrix product: with more of them the matrix is wider and mostly zeros
_MAX_REACH = 96  # taps to each side; a matrix that is mostly taps far away gains nothing over the FFT
_BLOCK_NUMEL = 1 << 18  # per thread: a block's tokens, scores and mask, 1 MiB each, stay near the core
_SORT_UP_TO = 256  # patches; numpy sorts short rows faster than it partitions them
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(patch_tokens: Tensor) -> bool:
    """Whether the functions of this file can take these tokens; pooling_formulas.py takes all.

    Not: float64, other devices, no numpy, and what `is_plain` leaves out.
    """
    is_known = patch_tokens.device.type == "cpu" and patch_tokens.dtype in _DTYPES
    return np is not None and is_known and is_plain(patch_tokens)


def pool(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_pool` for 1 <= k < N, with gradient.

    Args:
        patch_tokens: [B, N, D] that `takes` accepts.
        k: Patches kept per channel.
        sigma: Standard deviation in frequency bins.
        variant: "release" or "paper".

    Returns:
        [B, D] in the type of `patch_tokens`.
    """
    if k == 1:
        return patch_tokens.gather(1, select(patch_tokens, 1, sigma, variant)).squeeze(1)
    return _MaskedMean.apply(patch_tokens, k, sigma, variant)


def select(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_select`, the patches of a channel in ascending order: long [B, k, D]. Arguments as `pool`."""
    batch, _, num_channels = patch_tokens.shape
    topk_idx = torch.empty(batch, k, num_channels, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for block in _blocks(patch_tokens.detach(), sigma, variant):
            chosen = _first(block) if k == 1 else _positions(_keep(block, k), k)
            topk_idx[block.images, :, block.channels] = chosen
    return topk_idx


class _MaskedMean(torch.autograd.Function):
    """Mean over the kept patches; for the way back it saves one byte per value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, sigma: float, variant: str) -> Tensor:
        pooled = x.new_empty(x.shape[0], x.shape[2])
        is_kept = torch.empty(x.shape, dtype=torch.int8) if ctx.needs_input_grad[0] else None
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(x, sigma, variant):
                kept = _keep(block, k)
                if is_kept is not None:
                    is_kept[block.images, :, block.channels] = kept
                pooled[block.images, block.channels] = kept.mul_(block.values).sum(dim=1).div_(k)
        ctx.save_for_backward(is_kept)
        ctx.k = k
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (is_kept,) = ctx.saved_tensors
        grad = grad.div(ctx.k).unsqueeze(1)
        spread = is_kept.to(grad.dtype)
        return (spread * grad if torch.is_grad_enabled() else spread.mul_(grad)), None, None, None


class _Block(NamedTuple):
    """Some channels of some images.

    Attributes:
        values: [b, N, C] float32, the tokens.
        score: [b, N, C] float32, their stability; x/0 is +-inf.
        scratch: [b * N * C] float32, to write in. New memory for every block would cost as much as the products.
        images: Which images these are.
        channels: Which channels.
    """

    values: Tensor
    score: Tensor
    scratch: Tensor
    images: slice
    channels: slice


def _blocks(x: Tensor, sigma: float, variant: str) -> Iterator[_Block]:
    """Scores of [B, N, D], block by block; a block's tensors hold until the next one is asked for."""
    batch, num_patches, num_channels = x.shape
    matrix = _change_matrix(num_channels, sigma, variant)
    # Settings for faster and less exact float32 products would change the choice: x_hat - x cancels most digits.
    if torch.backends.mkldnn.matmul.fp32_precision not in ("none", "ieee"):
        matrix = None
    reach, panel = (0, num_channels) if matrix is None else ((len(matrix) - _PANEL) // 2, _PANEL)
    block_numel = _BLOCK_NUMEL * torch.get_num_threads()
    # At most a third of the images: a small batch should not need more extra memory where there are more threads.
    num_images = max(1, min(-(-batch // 3), block_numel // (num_patches * num_channels)))
    num_blocks = -(-num_images * num_patches * num_channels // block_numel)  # of the same images
    width = panel * -(-num_channels // (panel * num_blocks))
    memory = [torch.empty(num_images * num_patches * size) for size in (width + 2 * reach, width, width)]
    for start in range(0, batch, num_images):
        images = x[start : start + num_images]
        for first in range(0, num_channels, width):
            last = min(first + width, num_channels)
            rows = _part(memory[0], *images.shape[:2], last - first + 2 * reach)
            change = _part(memory[1], (last - first) // panel, *images.shape[:2], panel)
            score = _part(memory[2], *images.shape[:2], last - first)
            _wrap(images, first - reach, last + reach, out=rows)
            if matrix is None:
                gain = half_gain(num_channels, sigma, variant, rows.device)
                torch.sub(low_pass(rows, gain), rows, out=change[0])
            else:
                windows = rows.flatten(0, 1).unfold(1, len(matrix), panel).transpose(0, 1)
                torch.bmm(windows, matrix.expand(len(windows), -1, -1), out=change.flatten(1, 2))
            values = rows[..., reach : reach + last - first]
            _score(change, values, variant, out=score)
            yield _Block(values, score, change.view(-1), slice(start, start + len(images)), slice(first, last))


def _part(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _wrap(images: Tensor, first: int, last: int, out: Tensor) -> None:
    """Channels `first` to `last` of [b, N, D] as float32 [b, N, last - first]; they go on around both ends."""
    num_channels = images.shape[2]
    for turn in (-num_channels, 0, num_channels):
        start, stop = max(first, turn), min(last, turn + num_channels)
        if start < stop:
            out[..., start - first : stop - first].copy_(images[..., start - turn : stop - turn])


def _score(change: Tensor, values: Tensor, variant: str, out: Tensor) -> None:
    """`pooling.stability` that still ranks x/0 as +-inf.

    Args:
        change: [panels, b, N, P], x_hat - x; overwritten.
        values: [b, N, C], C = panels * P.
        variant: "release" or "paper".
        out: [b, N, C].
    """
    values, score = (t.unflatten(2, (len(change), -1)).permute(2, 0, 1, 3) for t in (values, out))
    if variant == "paper":
        low_freq = change + values
        torch.div(low_freq, change.abs_().add_(EPS), out=score)
    else:
        torch.div(values, change.abs_().clamp_min_(TINY), out=score)  # the clamp makes 0/0 a zero


@lru_cache(maxsize=64)
def _change_matrix(num_channels: int, sigma: float, variant: str) -> Tensor | None:
    """Matrix [P + 2 reach, P] from a window of channels to x_hat - x of its panel; None where only the FFT will do."""
    taps = low_pass_taps(num_channels, sigma, variant)
    reach = len(taps) - 1
    if num_channels % _PANEL or not 0 < reach < min(_MAX_REACH, num_channels / 2):
        return None
    taps = torch.cat([taps[:1] - 1, taps[1:]])
    offset = torch.arange(_PANEL + 2 * reach) - reach - torch.arange(_PANEL)[:, None]
    matrix = torch.where(offset.abs() <= reach, taps[offset.abs().clamp(max=reach)], 0.0).float()
    with torch.inference_mode(False):  # it may be made inside inference mode and used outside
        return matrix.T.contiguous()


def _keep(block: _Block, k: int) -> Tensor:
    """Float [b, N, C] in the block's scratch: 1.0 for the k largest scores along dim 1, else 0.0."""
    kth = _kth_largest(block, k)
    kept = torch.ge(block.score, kth, out=block.scratch.view(block.score.shape))
    return kept if bool((kept.sum(dim=1) == k).all()) else _keep_first_of_equals(block.score, kth, k)


def _first(block: _Block) -> Tensor:
    """Long [b, 1, C], the first patch of the largest score along dim 1."""
    score, num_patches = block.score, block.score.shape[1]
    best = score.amax(dim=1, keepdim=True)
    # A CPU finds a maximum along a strided dim much faster than its index, so mark it and add up the positions of the
    # marks, counted from N: a sum outside [N, 2 N) is not one mark.
    positions = torch.arange(num_patches, 2 * num_patches, dtype=torch.float32)[:, None]
    marks = torch.ge(score, best, out=block.scratch.view(score.shape))
    position = marks.mul_(positions).sum(dim=1, keepdim=True)
    low, high = position.aminmax()
    if low < num_patches or high >= 2 * num_patches:
        position = _keep_first_of_equals(score, best, 1).mul_(positions).sum(dim=1, keepdim=True)
    return position.sub_(num_patches).long()


def _keep_first_of_equals(score: Tensor, kth: Tensor, k: int) -> Tensor:
    """`_keep` where several scores equal the k-th: its first patches. NaN is the largest, so the token shows it."""
    score, kth = (t.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf) for t in (score, kth))
    above, equal = score > kth, score == kth
    room = k - above.sum(dim=1, keepdim=True)
    return (above | (equal & (equal.cumsum(dim=1) <= room))).float()


def _kth_largest(block: _Block, k: int) -> Tensor:
    """[b, 1, C], the k-th largest score along dim 1; NaN is the largest. Uses the block's scratch."""
    num_images, num_patches, num_channels = block.score.shape
    rows = block.scratch.view(num_images, num_channels, num_patches)
    for image, score in zip(rows, block.score, strict=True):
        image.copy_(score.T)  # torch transposes matrices in small squares, but not stacks of them

    def sort(rows: "np.ndarray") -> None:
        if num_patches <= _SORT_UP_TO:
            rows.sort(axis=-1)
        else:
            rows.partition(num_patches - k, axis=-1)

    _in_threads(sort, rows.flatten(0, 1).numpy())
    return rows[..., num_patches - k].unsqueeze(1).clone()  # scratch is written again


def _positions(kept: Tensor, k: int) -> Tensor:
    """[b, N, C] of k ones along dim 1 -> long [b, k, C], where they are."""
    num_images, num_patches, num_channels = kept.shape
    is_kept = np.ascontiguousarray(kept.to(torch.int8).numpy().view(np.bool_).swapaxes(1, 2))
    flat = torch.from_numpy(np.flatnonzero(is_kept)).view(num_images, num_channels, k)
    return flat.remainder_(num_patches).transpose(1, 2)


def _in_threads(function: Callable[["np.ndarray"], None], array: "np.ndarray") -> None:
    """Call a function that leaves the interpreter free on slices of an array along axis 0, one per torch thread.

    OpenMP's threads wait busily for torch's next operation, so a thread beside them gets half of a core: two threads
    gain nothing over this one.
    """
    num_threads = torch.get_num_threads()
    if num_threads <= 2 or array.size < _BLOCK_NUMEL // 4:
        function(array)
        return
    for _ in _executor(num_threads).map(function, np.array_split(array, num_threads)):
        pass  # where a part failed, it fails here


@lru_cache(maxsize=1)
def _executor(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them takes as long as sorting an image's scores."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="last_vit")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executor.cache_clear)  # a child has the object, but not its threads
