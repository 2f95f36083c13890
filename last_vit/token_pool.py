"""One interface for every read-out of a ViT's global token: LaSt and the baselines that its ablations need.

Adapters put a `TokenPool` where their host reads its global token. All kinds are parameter-free, so the state dict of a
model is the same whatever it is pooled with.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from last_vit.names import POOLS
from last_vit.pooling import LaStPool


class TokenPool(nn.Module):
    """Pools encoder output tokens to one global token.

    | kind      | global token                                                                            |
    |-----------|-----------------------------------------------------------------------------------------|
    | cls       | the first prefix token (paper Eq. 2; what the paper's tables call attention-pool)       |
    | mean      | mean over patches (paper Eq. 1)                                                         |
    | max       | per channel, the largest value over patches                                             |
    | attention | softmax(cls . x_i / sqrt(D)) weighted mean over patches: the CLS token as the query     |
    | last      | `last_vit.pooling.last_pool`, whose arguments are the others; `top_k` is needed         |
    ValueError: Unknown kind, or "last" without a valid `top_k`.
    """

    def __init__(
        self, kind: str, top_k: int | float | None = None, sigma: float | None = None, variant: str = "release"
    ) -> None:
        super().__init__()
        if kind not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {kind!r}")
        if kind == "last" and top_k is None:
            raise ValueError("pool 'last' needs top_k: an int (patches) or a float in (0, 1] (share of them)")
        self.kind = kind
        self.top_k, self.sigma, self.variant = (top_k, sigma, variant) if kind == "last" else (None, None, None)
        self.last_pool = LaStPool(top_k, sigma, variant) if kind == "last" else None

    def forward(
        self, tokens: Tensor, num_prefix_tokens: int, late_norm: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """[B, P + N, D], the encoder's output after its final norm with P >= 0 prefix tokens first -> [B, D].

        `late_norm` is the norm of a host that normalises behind its pooling: it is applied to the tokens, from which a
        pool chooses, but for the mean behind it, as such hosts do. The pooled token is normalised either way.
        ValueError: "cls" or "attention" for a model without CLS token, the first of the prefix; LaSt's own errors.
        """
        if self.kind in ("cls", "attention") and num_prefix_tokens == 0:
            raise ValueError(f"pool {self.kind!r} needs a CLS token and this model has none; use mean, max or last")
        if late_norm is not None:
            if self.kind == "mean":
                return late_norm(tokens[:, num_prefix_tokens:].mean(dim=1))
            tokens = late_norm(tokens)
        patch_tokens = tokens[:, num_prefix_tokens:]
        if self.kind == "cls":
            return tokens[:, 0]
        if self.kind == "mean":
            return patch_tokens.mean(dim=1)
        if self.kind == "max":
            return patch_tokens.amax(dim=1)
        if self.kind == "attention":
            return _attention(tokens[:, 0], patch_tokens)
        return self.last_pool(patch_tokens)

    def extra_repr(self) -> str:
        """The kind, for `print(model)`."""
        return f"kind={self.kind!r}"


def _attention(query: Tensor, patch_tokens: Tensor) -> Tensor:
    """One parameter-free attention read: [B, D] query over [B, N, D] patches -> [B, D]."""
    scores = torch.bmm(patch_tokens, query[:, :, None]) * patch_tokens.shape[2] ** -0.5
    weights = scores.float().softmax(dim=1).to(patch_tokens.dtype)
    return torch.bmm(weights.transpose(1, 2), patch_tokens).squeeze(1)
