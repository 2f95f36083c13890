"""Queries, keys and values of a ViT's last attention layer, and what its class token attends to, in one dense pass.

Read with one forward hook during an ordinary pass, so a host's attention may stay fused; only the class token's row of
the attention is computed anew. Knows timm's `Attention` (DINO and other plain timm ViTs, also inside open_clip), and
torch's `MultiheadAttention` (torchvision, native open_clip).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.adapters.base import class_names
from last_vit.dense import dense_forward

_TIMM = {"timm.layers.attention.Attention", "timm.models.vision_transformer.Attention"}


class LastAttention(NamedTuple):
    """One forward pass, read at the last attention layer, if asked for."""

    output: DenseOutput
    # each [B, N, D] of the patches, heads concatenated, as the layer's projection gives them: before any norm
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    # float32 [B, heads, N], share in [0, 1] of the class token's attention that each patch gets (class token and
    # registers get the rest); None for a host without class token
    cls_attention: Tensor | None = None


def last_attention(model: nn.Module, images: Tensor) -> LastAttention:
    """One pass over float [B, 3, H, W] images, normalised as the host expects, read at its last attention layer."""
    layer = find_attention_layer(model)
    seen: list[Tensor] = []
    if isinstance(layer, nn.MultiheadAttention):

        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            tokens = args[0] if module.batch_first else args[0].transpose(0, 1)
            seen.append(F.linear(tokens, module.in_proj_weight, module.in_proj_bias))

        handle = layer.register_forward_pre_hook(record)
    else:
        handle = layer.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    with handle:
        output = dense_forward(model, images)
    num_patches = output.patch_tokens.shape[1]
    queries, keys, values = seen[0].chunk(3, dim=2)  # each [B, P + N, D], prefix tokens first
    attention = None if output.cls_token is None else _cls_attention(layer, queries[:, :1], keys)[..., -num_patches:]
    patches = (part[:, -num_patches:] for part in (queries, keys, values))
    return LastAttention(output, *patches, attention)


def find_attention_layer(model: nn.Module) -> nn.Module:
    """The last attention layer of a host; one that `last_attention` does not know is a ValueError."""
    host = unwrap_host(model)
    blocks = find_adapter(model).blocks(host).modules
    block = blocks[-1] if blocks else None
    layer = getattr(block, "attn", getattr(block, "self_attention", None))
    is_known = type(layer) is nn.MultiheadAttention and layer.in_proj_weight is not None and layer.bias_k is None
    if is_known or (layer is not None and class_names(layer)[0] in _TIMM):
        return layer
    what = f"its last block has {class_names(layer)[0]}" if layer is not None else "it has no attention layer"
    raise ValueError(
        f"the last attention layer of this {type(host).__name__} cannot be read: {what}; known are those of plain "
        "timm ViTs, torchvision's and open_clip's native towers. The patch score works on every supported host"
    )


def _cls_attention(layer: nn.Module, cls_query: Tensor, keys: Tensor) -> Tensor:
    """Softmaxed attention of the class token: [B, 1, D], [B, P + N, D] -> float32 [B, heads, P + N]."""
    with torch.autocast(keys.device.type, enabled=False):
        query, keys = (
            tokens.float().unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for tokens in (cls_query, keys)
        )
        if not isinstance(layer, nn.MultiheadAttention):
            query, keys = layer.q_norm(query), layer.k_norm(keys)
        logits = query @ keys.transpose(2, 3) * query.shape[3] ** -0.5
        return logits.softmax(dim=3).squeeze(2)
