"""The last block of a CLIP image tower as training-free segmentation and detection run it, for one forward pass.

| name      | attention of the patches             | residual, MLP | source                              |
|-----------|--------------------------------------|---------------|-------------------------------------|
| vanilla   | softmax(q k)                         | kept          | CLIP itself                         |
| maskclip  | none: each patch keeps its own value | dropped       | MaskCLIP, "value path only"         |
| fvit      | none: each patch keeps its own value | kept          | F-ViT, CLIPSelf                     |
| sclip     | softmax(q q) + softmax(k k)          | kept          | SCLIP                               |
| clearclip | softmax(q q)                         | dropped       | ClearCLIP                           |
| naclip    | softmax(k k + w)                     | dropped       | NACLIP; w: see `neighbourhood`      |

Products are scaled by head_dim ** -0.5. In every row the values pass the block's own output projection (EVA: its inner
norm first, and its layer scale). EVA's queries and keys are taken after their rotary embedding, as its own attention
does; the papers above define theirs for CLIP's ViT, which has none.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from last_vit.adapters.base import class_names
from last_vit.names import LAST_BLOCKS

_VALUE_ONLY = ("maskclip", "fvit")
_NO_RESIDUAL = ("maskclip", "clearclip", "naclip")
_NATIVE_BLOCK = "open_clip.transformer.ResidualAttentionBlock"
_EVA_BLOCK, _EVA_ATTENTION = "timm.models.eva.EvaBlock", "timm.models.eva.EvaAttention"
GAUSSIAN_STD = 5.0  # of NACLIP, in patches


@contextmanager
def shadowed(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Let plain attributes hide a module's parameters, buffers, methods or attributes while the block runs."""
    own = vars(module)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


@contextmanager
def replaced_last_block(
    block: nn.Module, kind: str, grid_hw: tuple[int, int], gaussian_std: float = GAUSSIAN_STD
) -> Iterator[None]:
    """Let a tower's last block run as `kind`, one of `LAST_BLOCKS`, on a patch grid (h, w) while the `with` block runs.

    ValueError: A kind that does not exist, or is not defined for this block, or a width that is not positive; the
    message shows what works.
    """
    if not gaussian_std > 0:
        raise ValueError(f"gaussian_std is a width in patches above 0 (NACLIP: {GAUSSIAN_STD:g}), got {gaussian_std}")
    if kind not in LAST_BLOCKS:
        raise ValueError(f"last_block must be one of {', '.join(LAST_BLOCKS)}, got {kind!r}")
    is_native = class_names(block)[0] == _NATIVE_BLOCK and type(block.attn) is nn.MultiheadAttention
    is_eva = class_names(block)[0] == _EVA_BLOCK and class_names(block.attn)[0] == _EVA_ATTENTION
    if kind != "vanilla" and not is_native and not is_eva:
        raise ValueError(
            f"last_block {kind!r} is not defined for this tower, whose last block is {class_names(block)[0]} with "
            f"{class_names(block.attn)[0] if hasattr(block, 'attn') else 'no attention'}; it is for open_clip's native "
            "ViTs and for EVA. This tower takes 'vanilla'"
        )
    attend, branch = (_native_attention, _native_branch) if is_native else (_eva_attention, _eva_branch)
    with ExitStack() as shadows:
        if kind != "vanilla":
            attn, mix = block.attn, partial(_mix, kind=kind, grid_hw=grid_hw, gaussian_std=gaussian_std)
            forward = lambda x, *_, rope=None, **__: attend(attn, x, rope, kind, mix)  # noqa: E731
            shadows.enter_context(shadowed(attn, forward=forward))
        if kind in _NO_RESIDUAL:
            shadows.enter_context(shadowed(block, forward=lambda x, *_, **named: branch(block, x, **named)))
        yield


def _native_attention(
    attn: nn.MultiheadAttention, x: Tensor, _: None, kind: str, mix: Callable[..., Tensor]
) -> tuple[Tensor, None]:
    """In place of the forward of open_clip's nn.MultiheadAttention: [B, 1 + N, D] -> the same, and None."""
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if kind in _VALUE_ONLY:
        start = 2 * attn.embed_dim
        mixed = F.linear(x, weight[start:], None if bias is None else bias[start:])
    else:
        q, k, v = (_split_heads(part, attn.num_heads) for part in F.linear(x, weight, bias).chunk(3, dim=2))
        mixed = mix(q, k, v, 1)
    return attn.out_proj(mixed), None


def _eva_attention(attn: nn.Module, x: Tensor, rope: Tensor | None, kind: str, mix: Callable[..., Tensor]) -> Tensor:
    """In place of the forward of timm's EvaAttention: [B, P + N, D] -> the same."""
    if kind in _VALUE_ONLY:
        mixed = _eva_projection(attn, x, "v")
    else:
        q, k, v = (_split_heads(_eva_projection(attn, x, part), attn.num_heads) for part in "qkv")
        q, k = (_rotate(attn, part, rope).type_as(v) for part in (attn.q_norm(q), attn.k_norm(k)))
        mixed = mix(q, k, v, attn.num_prefix_tokens)
    mixed = attn.norm(mixed)
    if attn.gate is not None:
        mixed = mixed * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(mixed))


def _eva_projection(attn: nn.Module, x: Tensor, part: str) -> Tensor:
    """Queries, keys or values [B, P + N, D], from layers of their own or from a fused one."""
    if attn.qkv is None:
        return getattr(attn, f"{part}_proj")(x)
    weight = attn.qkv.weight.chunk(3)["qkv".index(part)]
    return F.linear(x, weight, None if attn.q_bias is None else getattr(attn, f"{part}_bias"))


def _rotate(attn: nn.Module, heads: Tensor, rope: Tensor | None) -> Tensor:
    if rope is None:
        return heads
    patches = apply_rot_embed_cat(heads[:, :, attn.num_prefix_tokens :], rope, half=attn.rotate_half)
    return torch.cat([heads[:, :, : attn.num_prefix_tokens], patches], dim=2)


def _native_branch(block: nn.Module, x: Tensor, **_: Any) -> Tensor:
    return block.ls_1(block.attention(block.ln_1(x)))


def _eva_branch(block: nn.Module, x: Tensor, rope: Tensor | None = None, **_: Any) -> Tensor:
    branch = block.attn(block.norm1(x), rope=rope)
    return branch if block.gamma_1 is None else block.gamma_1 * branch


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)  # [B, heads, P + N, d]


def _mix(
    q: Tensor, k: Tensor, v: Tensor, num_prefix: int, *, kind: str, grid_hw: tuple[int, int], gaussian_std: float
) -> Tensor:
    """Heads [B, heads, P + N, d] -> mixed values [B, P + N, D]."""
    attend = F.scaled_dot_product_attention
    if kind == "sclip":
        mixed = attend(q, q, v) + attend(k, k, v)
    elif kind == "clearclip":
        mixed = attend(q, q, v)
    else:
        near = neighbourhood(grid_hw, num_prefix, k.device, gaussian_std)
        mixed = attend(k, k, v, attn_mask=near.to(k.dtype))
    return mixed.transpose(1, 2).flatten(2)


def neighbourhood(
    grid_hw: tuple[int, int],
    num_prefix: int = 1,
    device: torch.device | str | None = None,
    std: float = GAUSSIAN_STD,
) -> Tensor:
    """NACLIP's w: exp(-d^2 / (2 std^2)), d the distance of two patches in patches; 0 where a prefix token takes part.

    float32 [P + N, P + N] in [0, 1], to be added to the scaled scores; P = `num_prefix`, N = h * w.
    """
    sides = (torch.arange(size, dtype=torch.float32, device=device) for size in grid_hw)
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    squared = sum((places[:, None] - places[None]).square() for places in (rows.flatten(), columns.flatten()))
    return F.pad(torch.exp(-squared / (2 * std**2)), (num_prefix, 0, num_prefix, 0))
