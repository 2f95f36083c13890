"""Patch score: how much each patch resembles the image's global token (paper Eq. 3).

The paper's diagnostic, used for Point-in-Box, masks and figures, never inside training. What a mask does with its
connected components is the business of object discovery, not of this file.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from last_vit.pooling import TINY, describe


def patch_score(patch_tokens: Tensor, global_token: Tensor) -> Tensor:
    """Cosine similarity of every patch to a global token (paper Eq. 3): float32 [B, N] in [-1, 1].

    `patch_tokens` are [B, N, D], after the final norm, prefix tokens removed; `global_token` is [B, D], the read-out of
    the same forward pass (CLS, LaSt token, mean; GAP for a ConvNet). 0 where a token is all zeros.

    Example:
        >>> patch_score(torch.ones(2, 9, 4), torch.ones(2, 4)).shape
        torch.Size([2, 9])
    """
    tensors = isinstance(patch_tokens, Tensor) and isinstance(global_token, Tensor)
    if not tensors or patch_tokens.ndim != 3 or global_token.ndim != 2 or patch_tokens.shape[::2] != global_token.shape:
        raise ValueError(
            f"expected patch_tokens [B, N, D] and global_token [B, D] of equal B and D, got "
            f"{describe(patch_tokens)} and {describe(global_token)}"
        )
    with torch.autocast(patch_tokens.device.type, enabled=False):
        score = torch.bmm(_direction(patch_tokens), _direction(global_token)[:, :, None]).squeeze(2)
        return score.clamp(-1.0, 1.0)


def _direction(tokens: Tensor) -> Tensor:
    """float32 tokens [..., D] of length 1, zeros for zeros; first scaled, so that no square over- or underflows."""
    tokens = tokens.float()
    tokens = tokens / tokens.abs().amax(dim=-1, keepdim=True).clamp_min(TINY)
    return F.normalize(tokens, dim=-1)


def peak_index(score: Tensor) -> Tensor:
    """Index of each image's highest-scoring patch: float [B, N] -> long [B] in [0, N)."""
    return score.max(dim=1).indices


def threshold_mask(score: Tensor, num_std: float) -> Tensor:
    """Patches whose score [B, N] exceeds the image's own mean by `num_std` standard deviations: bool [B, N].

    The paper uses 1 for object discovery (Sec. 5.2) and 0 for coarse segmentation (Sec. 8.3). The standard deviation
    is the population's; the paper does not say which.
    """
    std, mean = torch.std_mean(score, dim=1, correction=0, keepdim=True)
    return score > mean + num_std * std
