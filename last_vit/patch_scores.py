"""Patch score: how much each patch resembles the image's global token (paper Eq. 3).

The paper's diagnostic, used for Point-in-Box, masks and figures, never inside training. What a mask does with its
connected components is the business of object discovery, not of this file.
"""

import torch
from torch import Tensor


def patch_score(patch_tokens: Tensor, global_token: Tensor) -> Tensor:
    """Cosine similarity of every patch to a global token (paper Eq. 3).

    Args:
        patch_tokens: [B, N, D], after the final norm, prefix tokens removed.
        global_token: [B, D], the read-out of the same forward pass (CLS, LaSt token, mean; GAP for a ConvNet).

    Returns:
        float32 [B, N] in [-1, 1]; 0 where a token is all zeros.

    Raises:
        ValueError: If ranks, batch or channel sizes disagree; the message shows both shapes.

    Example:
        >>> patch_score(torch.ones(2, 9, 4), torch.ones(2, 4)).shape
        torch.Size([2, 9])
    """
    if patch_tokens.ndim != 3 or global_token.ndim != 2 or patch_tokens.shape[::2] != global_token.shape:
        raise ValueError(
            f"expected patch_tokens [B, N, D] and global_token [B, D] of equal B and D, got "
            f"{tuple(patch_tokens.shape)} and {tuple(global_token.shape)}"
        )
    with torch.autocast(patch_tokens.device.type, enabled=False):
        patches, query = patch_tokens.float(), global_token.float()
        dot = torch.bmm(patches, query[:, :, None]).squeeze(2)
        norms = torch.linalg.vector_norm(patches, dim=2) * torch.linalg.vector_norm(query, dim=1, keepdim=True)
        return (dot / norms.clamp_min(torch.finfo(torch.float32).tiny)).clamp(-1.0, 1.0)


def peak_index(score: Tensor) -> Tensor:
    """Index of each image's highest-scoring patch: float [B, N] -> long [B] in [0, N)."""
    return score.max(dim=1).indices


def threshold_mask(score: Tensor, num_std: float) -> Tensor:
    """Patches whose score exceeds the image's own mean by `num_std` standard deviations.

    The paper uses 1 for object discovery (Sec. 5.2) and 0 for coarse segmentation (Sec. 8.3). The standard deviation
    is the population's; the paper does not say which.

    Args:
        score: float [B, N].
        num_std: Threshold above the mean, in standard deviations.

    Returns:
        bool [B, N].
    """
    std, mean = torch.std_mean(score, dim=1, correction=0, keepdim=True)
    return score > mean + num_std * std
