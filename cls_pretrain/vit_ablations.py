"""What the paper compares LaSt with: register tokens (Darcet et al., ICLR 2024; tables 1 and 3) and window attention.

Both are hooks on torchvision's VisionTransformer: its own forward, every pool and every probe see class token and
patches as without them. Window attention (Sec. 4.4, table 2) restricts what a patch can see, by a mask that is handed
to nn.MultiheadAttention; it does not make attention cheaper.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.adapters.torchvision_vit import check_host


def add_register_tokens(model: nn.Module, num_registers: int = 4) -> nn.Module:
    """Give torchvision's ViT, in place, R learned tokens without position embedding: [CLS, registers, patches].

    They enter behind the position embedding, pass all blocks, and are dropped before the final norm. The model gains
    one parameter, `register_tokens` [1, R, D] from a normal distribution with std 1e-6, before the optimizer, DDP and
    torch.compile take it. ValueError for another host, one that has registers, or no positive number of them.
    """
    check_host(model, "register tokens")
    if type(num_registers) is not int or num_registers < 1:
        raise ValueError(f"num_registers must be an int of at least 1 (4 in Darcet et al.), got {num_registers!r}")
    if hasattr(model, "register_tokens"):
        raise ValueError(f"this model has {model.register_tokens.shape[1]} register tokens already")
    registers = model.class_token.new_empty(1, num_registers, model.hidden_dim).normal_(std=1e-6)
    model.register_parameter("register_tokens", nn.Parameter(registers))
    model.encoder.layers.register_forward_pre_hook(_Insert(model))
    model.encoder.layers.register_forward_hook(partial(_remove, num_registers))
    return model


class _Insert:
    """[B, 1 + N, D] -> [B, 1 + R + N, D]; looks the parameter up in its host, wherever that was moved or copied."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def __call__(self, layers: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (tokens,) = args
        registers = self.host.register_tokens.expand(len(tokens), -1, -1)
        return (torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1),)


def _remove(num_registers: int, layers: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    """[B, 1 + R + N, D] -> [B, 1 + N, D]."""
    return torch.cat([output[:, :1], output[:, 1 + num_registers :]], dim=1)


def add_window_attention(model: nn.Module, layers: Sequence[int], window_size: int = 4) -> nn.Module:
    """Restrict attention among patches, at some blocks, to non-overlapping windows of the patch grid.

    Windows start at the top left; where the window does not divide the grid, those at the right and bottom border are
    smaller (14 = 4 + 4 + 4 + 2). Class and register tokens stay global both ways, and blocks are counted from 0: the
    paper says neither. Every windowed attention gains a persistent buffer, `window_size`, so that weights do not load
    into a model with other windows. To be called before DDP and torch.compile take the model.

    `model` is torchvision's VisionTransformer itself, changed in place and returned; `window_size` is in patches, at
    least 1; one of at least the grid's side restricts nothing. ValueError for another host; no block, one out of range,
    named twice or windowed before; a window below 1.
    """
    check_host(model, "window attention")
    blocks = list(model.encoder.layers)
    known = [i for i in layers if type(i) is int and 0 <= i < len(blocks)] if isinstance(layers, Sequence) else []
    if not known or len(set(known)) < len(layers):
        raise ValueError(f"window layers must be a list of different blocks in [0, {len(blocks) - 1}], got {layers!r}")
    if type(window_size) is not int or window_size < 1:
        raise ValueError(f"window_size must be a number of patches, at least 1, got {window_size!r}")
    attentions = [blocks[layer].self_attention for layer in layers]
    if any(hasattr(attention, "window_size") for attention in attentions):
        raise ValueError(f"some of the blocks {layers!r} have window attention already")
    side = model.image_size // model.patch_size
    mask = window_mask((side, side), window_size)
    for attention in attentions:
        # Additive: a boolean mask leads into nn.MultiheadAttention's fast path, which is slower with one (1.7x, on a
        # CPU). Not persistent: it follows from the size.
        additive = torch.zeros_like(mask, dtype=model.class_token.dtype).masked_fill_(mask, -torch.inf)
        attention.register_buffer("window_mask", additive.to(model.class_token.device), persistent=False)
        attention.register_buffer("window_size", torch.tensor(window_size, device=model.class_token.device))
        attention.register_forward_pre_hook(_add_mask, with_kwargs=True)
    model.register_load_state_dict_pre_hook(_check_window_size)
    return model


def window_mask(grid_hw: tuple[int, int], window_size: int) -> Tensor:
    """Bool [h * w, h * w], True between patches of different windows of a grid (h, w); patches are counted row by row.

    Example:
        >>> window_mask((1, 3), 2).int().tolist()
        [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    rows, columns = (torch.arange(size) // window_size for size in grid_hw)
    window = (rows[:, None] * grid_hw[1] + columns[None, :]).flatten()
    return window[:, None] != window[None, :]


def _add_mask(
    attention: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Hand the mask over, with open rows and columns for whatever tokens stand before the patches."""
    num_prefix_tokens = args[0].shape[1] - len(attention.window_mask)
    padded = F.pad(attention.window_mask, (num_prefix_tokens, 0, num_prefix_tokens, 0))
    return args, {**kwargs, "attn_mask": padded}


def _check_window_size(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Runs before any tensor of `model` is loaded: equal names can still hide windows of another size."""
    for name, module in model.named_modules():
        own, theirs = getattr(module, "window_size", None), state_dict.get(f"{prefix}{name}.window_size")
        if own is not None and theirs is not None and int(own) != int(theirs):
            raise ValueError(
                f"the weights were trained with windows of {int(theirs)} x {int(theirs)} patches, the model has "
                f"{int(own)} x {int(own)}: build it with window_size={int(theirs)}"
            )
