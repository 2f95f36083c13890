"""Many poolings of one model for the price of one forward pass: what ablations over K and pooling need.

The encoder does not know what its tokens are pooled with. So several pools stand where a host has one, and hand on
their tokens one after the other as a larger batch: whatever the host does behind its pooling (norm, projection, head)
treats the rows alike. Each read-out is what the host would give with that pool attached alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.adapters.base import class_names
from last_vit.dense import dense_forward, pooling_of
from last_vit.token_pool import TokenPool

# How the hosts call their own read-outs: open_clip's `pool_type`, timm's `global_pool`.
_OWN_READ_OUTS = {"tok": "cls", "token": "cls", "avg": "mean"}


class ReadOuts(nn.Module):
    """Several pools in the place of one.

    Args:
        pools: At least one.
    """

    kind = "several"

    def __init__(self, pools: Sequence[TokenPool]) -> None:
        super().__init__()
        if not pools:
            raise ValueError("at least one pool is needed")
        self.pools = nn.ModuleList(pools)

    def forward(self, tokens: Tensor, num_prefix_tokens: int) -> Tensor:
        """[B, P + N, D] -> [R * B, D], pool by pool; see `TokenPool`."""
        return torch.cat([pool(tokens, num_prefix_tokens) for pool in self.pools])


def attach_read_outs(model: nn.Module, pools: Sequence[TokenPool]) -> nn.Module:
    """Pool with several pools, in place of a host's pooling; for `dense_read_outs` alone, and for good.

    Args:
        model: Any host with an adapter, as in `attach_pool`; best an own one, for its outputs are R * B rows now.
        pools: R of them.

    Returns:
        `model` itself.

    Raises:
        ValueError: No pool, an unsupported host, or a pool that it cannot serve.
    """
    adapter, host = find_adapter(model), unwrap_host(model)
    for pool in pools:
        adapter.attach(host, pool)  # says which of them the host cannot serve
    adapter.attach(host, ReadOuts(pools))
    return model


def dense_read_outs(model: nn.Module, images: Tensor) -> list[DenseOutput]:
    """One forward pass, read once per pool.

    Args:
        model: Of `attach_read_outs`.
        images: [B, 3, H, W], as in `dense_forward`.

    Returns:
        R outputs; they differ in `global_token` [B, D] and `logits` [B, C], and share the patch tokens.
    """
    output = dense_forward(model, images)
    tokens, logits = output.global_token.split(len(images)), output.logits.split(len(images))
    return [output._replace(global_token=own, logits=row) for own, row in zip(tokens, logits, strict=True)]


def own_pool(model: nn.Module) -> TokenPool:
    """The pool that a model reads with now, also where that is the host's own read-out.

    Args:
        model: A host with an adapter; of one without attached pool, open_clip's and timm's ViTs are known.

    Raises:
        ValueError: A host that reads in another way than its class token or the mean of its patches.
    """
    pooling = pooling_of(model)
    if pooling["pool"] != "host":
        return TokenPool(pooling["pool"], pooling["top_k"], pooling["sigma"], pooling["variant"] or "release")
    host = unwrap_host(model)
    tower = getattr(host, "visual", host)
    tower = getattr(tower, "trunk", tower)
    own = getattr(tower, "pool_type", getattr(tower, "global_pool", None))
    if own not in _OWN_READ_OUTS:
        raise ValueError(
            f"{class_names(tower)[0]} reads its tokens in its own way ({own!r}), which no pool here stands for; "
            "supported are towers with pool_type or global_pool 'tok', 'token' or 'avg'"
        )
    return TokenPool(_OWN_READ_OUTS[own])
