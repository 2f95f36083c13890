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

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from last_vit.adapters.base import class_names
from last_vit.clip_positions import shadowed

LAST_BLOCKS = ("vanilla", "maskclip", "sclip", "clearclip", "naclip", "fvit")
_VALUE_ONLY = ("maskclip", "fvit")
_NO_RESIDUAL = ("maskclip", "clearclip", "naclip")
_NATIVE_BLOCK = "open_clip.transformer.ResidualAttentionBlock"
_EVA_BLOCK, _EVA_ATTENTION = "timm.models.eva.EvaBlock", "timm.models.eva.EvaAttention"
_GAUSSIAN_STD = 5.0  # of NACLIP, in patches


def check_last_block(block: nn.Module, kind: str) -> None:
    """Refuse a kind that does not exist, or is not defined for a tower's block.

    Raises:
        ValueError: Shows what works.
    """
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


@contextmanager
def replaced_last_block(block: nn.Module, kind: str, grid_hw: tuple[int, int]) -> Iterator[None]:
    """Let a tower's last block run as `kind` while the `with` block runs.

    Args:
        block: The last block, as `check_last_block` accepts it.
        kind: One of `LAST_BLOCKS`.
        grid_hw: (h, w) of the patch grid.

    Raises:
        ValueError: As `check_last_block`.
    """
    check_last_block(block, kind)
    with ExitStack() as shadows:
        if kind != "vanilla":
            is_native = isinstance(block.attn, nn.MultiheadAttention)
            attention = (
                _NativeAttention(block.attn, kind, grid_hw) if is_native else _EvaAttention(block.attn, kind, grid_hw)
            )
            shadows.enter_context(shadowed(block.attn, forward=attention))
            if kind in _NO_RESIDUAL:
                branch = _native_branch if is_native else _eva_branch
                shadows.enter_context(shadowed(block, forward=lambda x, *args, **kwargs: branch(block, x, **kwargs)))
        yield


class _NativeAttention:
    """Stands in for the forward of open_clip's nn.MultiheadAttention: [B, 1 + N, D] -> the same, and None."""

    def __init__(self, attn: nn.MultiheadAttention, kind: str, grid_hw: tuple[int, int]) -> None:
        self.attn, self.kind, self.grid_hw = attn, kind, grid_hw

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        attn, width = self.attn, self.attn.embed_dim
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        if self.kind in _VALUE_ONLY:
            mixed = F.linear(x, weight[2 * width :], None if bias is None else bias[2 * width :])
        else:
            q, k, v = (_split_heads(part, attn.num_heads) for part in F.linear(x, weight, bias).chunk(3, dim=2))
            mixed = _join_heads(_mix(q, k, v, self.kind, 1, self.grid_hw))
        return attn.out_proj(mixed), None


class _EvaAttention:
    """Stands in for the forward of timm's EvaAttention: [B, P + N, D] -> the same."""

    def __init__(self, attn: nn.Module, kind: str, grid_hw: tuple[int, int]) -> None:
        self.attn, self.kind, self.grid_hw = attn, kind, grid_hw

    def __call__(self, x: Tensor, rope: Tensor | None = None, **_: Any) -> Tensor:
        attn = self.attn
        if self.kind in _VALUE_ONLY:
            mixed = self._project(x, "v")
        else:
            q, k, v = (_split_heads(self._project(x, part), attn.num_heads) for part in "qkv")
            q, k = (self._rotate(part, rope).type_as(v) for part in (attn.q_norm(q), attn.k_norm(k)))
            mixed = _join_heads(_mix(q, k, v, self.kind, attn.num_prefix_tokens, self.grid_hw))
        mixed = attn.norm(mixed)
        if attn.gate is not None:
            mixed = mixed * attn.gate(x).sigmoid()
        return attn.proj_drop(attn.proj(mixed))

    def _project(self, x: Tensor, part: str) -> Tensor:
        """Queries, keys or values [B, P + N, D], from layers of their own or from a fused one."""
        attn = self.attn
        if attn.qkv is None:
            return getattr(attn, f"{part}_proj")(x)
        weight = attn.qkv.weight.chunk(3)["qkv".index(part)]
        return F.linear(x, weight, None if attn.q_bias is None else getattr(attn, f"{part}_bias"))

    def _rotate(self, heads: Tensor, rope: Tensor | None) -> Tensor:
        if rope is None:
            return heads
        from timm.layers import apply_rot_embed_cat

        num_prefix = self.attn.num_prefix_tokens
        patches = apply_rot_embed_cat(heads[:, :, num_prefix:], rope, half=self.attn.rotate_half)
        return torch.cat([heads[:, :, :num_prefix], patches], dim=2)


def _native_branch(block: nn.Module, x: Tensor, **_: Any) -> Tensor:
    return block.ls_1(block.attention(block.ln_1(x)))


def _eva_branch(block: nn.Module, x: Tensor, rope: Tensor | None = None, **_: Any) -> Tensor:
    branch = block.attn(block.norm1(x), rope=rope)
    return branch if block.gamma_1 is None else block.gamma_1 * branch


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)  # [B, heads, P + N, d]


def _join_heads(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)  # [B, P + N, D]


def _mix(q: Tensor, k: Tensor, v: Tensor, kind: str, num_prefix: int, grid_hw: tuple[int, int]) -> Tensor:
    attend = F.scaled_dot_product_attention
    if kind == "sclip":
        return attend(q, q, v) + attend(k, k, v)
    if kind == "clearclip":
        return attend(q, q, v)
    return attend(k, k, v, attn_mask=neighbourhood(grid_hw, num_prefix, k.device).to(k.dtype))


def neighbourhood(grid_hw: tuple[int, int], num_prefix: int = 1, device: torch.device | str | None = None) -> Tensor:
    """NACLIP's w: exp(-d^2 / (2 * 5^2)), d the distance of two patches in patches; 0 where a prefix token takes part.

    Args:
        grid_hw: (h, w) of the patch grid, N = h * w.
        num_prefix: Tokens before the patches, P.
        device: Of the answer.

    Returns:
        float32 [P + N, P + N] in [0, 1], to be added to the scaled scores.

    Example:
        >>> neighbourhood((1, 2), num_prefix=1)[1:, 1:]
        tensor([[1.0000, 0.9802],
                [0.9802, 1.0000]])
    """
    sides = (torch.arange(size, dtype=torch.float32, device=device) for size in grid_hw)
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    squared = sum((places[:, None] - places[None]).square() for places in (rows.flatten(), columns.flatten()))
    return F.pad(torch.exp(-squared / (2 * _GAUSSIAN_STD**2)), (num_prefix, 0, num_prefix, 0))
