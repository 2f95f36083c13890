"""Many poolings of one model for the price of one forward pass: what ablations over K and pooling need.

The encoder does not know what its tokens are pooled with. So several pools stand where a host has one, and hand on
their tokens one after the other as a larger batch: whatever the host does behind its pooling (norm, projection, head)
treats the rows alike. Each read-out is what the host would give with that pool attached alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.adapters.base import class_names
from last_vit.dense import dense_forward
from last_vit.token_pool import TokenPool

# How the hosts call their own read-outs: open_clip's `pool_type`, timm's `global_pool`.
_OWN_READ_OUTS = {"tok": "cls", "token": "cls", "avg": "mean"}


class ReadOuts(nn.Module):
    """Several pools in the place of one."""

    kind = "several"

    def __init__(self, pools: Sequence[TokenPool]) -> None:
        super().__init__()
        self.pools = nn.ModuleList(pools)

    def forward(self, *tokens: Any) -> Tensor:
        """[B, P + N, D] -> [R * B, D], pool by pool; takes what `TokenPool` takes."""
        return torch.cat([pool(*tokens) for pool in self.pools])


def attach_read_outs(model: nn.Module, pools: Sequence[TokenPool]) -> nn.Module:
    """Pool with R pools, in place of a host's pooling; for `dense_read_outs` alone, and for good. Returns `model`."""
    adapter, host = find_adapter(model), unwrap_host(model)
    for pool in pools:
        adapter.attach(host, pool)  # says which of them the host cannot serve
    adapter.attach(host, ReadOuts(pools))
    return model


def dense_read_outs(model: nn.Module, images: Tensor) -> list[DenseOutput]:
    """One pass over [B, 3, H, W] images, read once per pool: outputs that share all but `global_token` and `logits`."""
    output = dense_forward(model, images)
    tokens, logits = output.global_token.split(len(images)), output.logits.split(len(images))
    return [output._replace(global_token=own, logits=row) for own, row in zip(tokens, logits, strict=True)]


def own_pool(model: nn.Module) -> TokenPool:
    """The pool that a model reads with now, also where that is the own read-out of open_clip's or timm's ViT."""
    host = unwrap_host(model)
    if (attached := find_adapter(model).attached(host)) is not None:
        return attached
    tower = getattr(host, "visual", host)
    tower = getattr(tower, "trunk", tower)
    own = getattr(tower, "pool_type", getattr(tower, "global_pool", None))
    if own not in _OWN_READ_OUTS:
        raise ValueError(
            f"{class_names(tower)[0]} reads its tokens in its own way ({own!r}), not by 'tok', 'token' or 'avg'"
        )
    return TokenPool(_OWN_READ_OUTS[own])


def list_pools(model: nn.Module, kinds: Sequence[str], top_ks: Sequence[int | float]) -> list[TokenPool]:
    """The model's own pool, and then those asked for that are another one; `top_ks` are of "last".

    Variant and sigma of the model's LaSt, if it has one, are those of all.
    """
    own = own_pool(model)
    pools = {(own.kind, repr(own.top_k)): own}  # 1 is one patch and 1.0 is all of them
    for kind in kinds:
        for top_k in top_ks if kind == "last" else [None]:
            pools.setdefault((kind, repr(top_k)), TokenPool(kind, top_k, own.sigma, own.variant or "release"))
    return list(pools.values())
