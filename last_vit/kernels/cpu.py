"""LaSt pooling on a CPU: the same choice as the formulas, about twice as fast for 1 < K < N.

torch's topk over patches, which lie a row of channels apart, is most of the formulas' time. Here the K-th score of each
channel is read from a sorted copy of its scores (numpy sorts short rows with vector instructions), and all scores that
reach it are kept: a mask, with which the mean is one more product. Of equal scores the first patches are kept.
Images go through in blocks that stay in a core's cache.

numpy sorts in one thread, so with more than a few threads the formulas are as fast and are left alone.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from last_vit.pooling import raw_score

_MAX_THREADS = 4
_BLOCK_NUMEL = 1 << 19
_SORT_UP_TO = 256  # patches; longer rows are partitioned


def takes(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> bool:
    """Whether `pool` and `select` should do it; while a graph is traced or exported, torch's own operators should."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return k > 1 and not is_traced and patch_tokens.numel() > 0 and torch.get_num_threads() <= _MAX_THREADS


def pool(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_pool` for what `takes` accepts."""
    sum_dtype = torch.promote_types(patch_tokens.dtype, torch.float32)  # a sum of float16 may overflow
    parts = patch_tokens.split(_block(patch_tokens))
    means = [(x * _keep(x, k, sigma, variant)).sum(dim=1, dtype=sum_dtype) / k for x in parts]
    return torch.cat(means).to(patch_tokens.dtype)


def select(patch_tokens: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    """`pooling.last_select` for what `takes` accepts; the patches of a channel in ascending order."""
    parts = patch_tokens.split(_block(patch_tokens))
    return torch.cat([torch.ops.last_vit.list_kept(_keep(x, k, sigma, variant), k) for x in parts])


def _block(x: Tensor) -> int:
    """Images at a time."""
    return max(1, _BLOCK_NUMEL // (x.shape[1] * x.shape[2]))


def _keep(x: Tensor, k: int, sigma: float, variant: str) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.ops.last_vit.keep_largest(raw_score(x.detach(), sigma, variant), k)


def _keep_largest(score: Tensor, k: int) -> Tensor:
    """The k largest scores along dim 1, of equals the first, NaN before all: float32 [B, N, D] -> bool [B, N, D]."""
    batch, num_patches, num_channels = score.shape
    kth = torch.empty(batch, 1, num_channels, dtype=score.dtype, device=score.device)
    rows = torch.empty(num_channels, num_patches, dtype=score.dtype, device=score.device)
    for image, threshold in zip(score, kth[:, 0], strict=True):
        rows.copy_(image.T)
        if num_patches <= _SORT_UP_TO:
            rows.numpy().sort(axis=-1)
        else:
            rows.numpy().partition(num_patches - k, axis=-1)
        threshold.copy_(rows[:, num_patches - k])
    kept = score >= kth
    if np.count_nonzero(kept.numpy()) != k * kth.numel() or bool(kth.isnan().any()):  # equal scores, or NaN
        score, kth = (t.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf) for t in (score, kth))
        above, equal = score > kth, score == kth
        room = k - above.sum(dim=1, keepdim=True)
        kept = above | (equal & (equal.cumsum(dim=1) <= room))
    return kept


def _list_kept(kept: Tensor, k: int) -> Tensor:
    """Where the k marks along dim 1 are: bool [B, N, D] -> long [B, k, D]."""
    num_images, num_patches, num_channels = kept.shape
    flat = torch.from_numpy(np.flatnonzero(kept.mT.contiguous().numpy())).remainder_(num_patches)
    return flat.view(num_images, num_channels, k).mT.contiguous()


# As operators of torch, vmap, fake tensors and tracing leave them whole. (torch.library.custom_op would load dynamo.)
_LIBRARY = torch.library.Library("last_vit", "FRAGMENT")


def _register(name: str, function: Callable[[Tensor, int], Tensor], fake: Callable[[Tensor, int], Tensor]) -> None:
    def vmapped(info: object, in_dims: tuple[int, None], x: Tensor, k: int) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return getattr(torch.ops.last_vit, name)(x.flatten(0, 1), k).unflatten(0, x.shape[:2]), 0

    _LIBRARY.define(f"{name}(Tensor x, int k) -> Tensor")
    _LIBRARY.impl(name, function, "CPU")
    torch.library.register_fake(f"last_vit::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"last_vit::{name}", vmapped, lib=_LIBRARY)


_register("keep_largest", _keep_largest, lambda x, k: torch.empty_like(x, dtype=torch.bool))
_register("list_kept", _list_kept, lambda x, k: x.new_empty(x.shape[0], k, x.shape[2], dtype=torch.long))
