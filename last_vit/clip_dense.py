"""Dense features of a CLIP image tower, in the space of its text embeddings, for images of any size.

    dense = clip_dense_forward(model, images, blocks=(3, 5, 7, 11), last_block="fvit", position="fvit")
    dense.features      # [B, h * w, E], un-normalised
    dense.blocks[0]     # [B, width, h, w], raw output of block 3

The class token is replaced by every patch in what CLIP does behind its last block: final norm, then projection. The
pooling does not take part, so whether LaSt is attached to the tower or not changes nothing here but the weights that it
was trained with. Nothing of the host's forward is repeated: its own `forward_intermediates` runs, with positions for
the images' grid and another last block put in place for the length of the call. A model is changed during the call, so
one model must not be called from two threads.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from last_vit.adapters import unwrap_host
from last_vit.adapters.base import class_names
from last_vit.adapters.open_clip_vit import image_tower
from last_vit.clip_last_block import GAUSSIAN_STD, replaced_last_block, shadowed

POSITIONS = ("sclip", "fvit", "open_clip")
_TRUNKS = {"timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva"}


class ClipDense(NamedTuple):
    """One forward pass of a CLIP image tower."""

    features: Tensor  # [B, h * w, E], patches row by row, projected to where text embeddings are; not normalised
    grid_hw: tuple[int, int]  # (h, w) of the patch grid
    blocks: tuple[Tensor, ...]  # each asked block's raw output [B, width, h, w] (no norm, no class token)


def clip_dense_forward(
    model: nn.Module,
    images: Tensor,
    blocks: Sequence[int] = (),
    last_block: str = "vanilla",
    position: str = "sclip",
    gaussian_std: float = GAUSSIAN_STD,
) -> ClipDense:
    """Dense features, and the outputs of some blocks, in one pass.

    Runs in whatever train / eval, autocast and grad mode the caller has set; images are cast to the dtype of the
    tower's patch embedding. Call `model.eval()` first: a tower that drops patches has no map.

    `model` is open_clip's `CLIP`, `CustomTextCLIP` or `CoCa`, or its image tower, bare or wrapped (DDP, compile). The
    tower is a native `VisionTransformer`, or a `TimmModel` with a ViT or EVA trunk, without attention pooling. Images
    are float [B, 3, H, W], normalised as the tower expects, of at least one patch. The patch convolution floors: rows
    and columns of pixels beyond the last whole patch at the bottom and the right are not seen, and the h x w map stands
    for the whole image all the same. `blocks` are counted from 0; the last one's output is that of `last_block`, one of
    `last_vit.names.LAST_BLOCKS` (clip_last_block.py), of which "naclip" takes `gaussian_std` in patches. `position`
    says how learned position embeddings are resized for another grid than the tower's own (`resize_positions`); rotary
    ones are always made for the grid, as timm makes them. ValueError for images, a block or a `last_block` that the
    tower cannot take, another model, and a tower that drops patches.

    Example:
        >>> from open_clip.model import VisionTransformer
        >>> tower = VisionTransformer(32, 8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=12).eval()
        >>> dense = clip_dense_forward(tower, torch.rand(2, 3, 40, 68), blocks=[0])
        >>> dense.features.shape, dense.grid_hw, dense.blocks[0].shape
        (torch.Size([2, 40, 12]), (5, 8), torch.Size([2, 16, 5, 8]))
    """
    tower = _vit_tower(model)
    last = len(_blocks(tower)) - 1
    grid_hw, outputs = _run(tower, images, [*blocks, last], last_block, position, gaussian_std)
    return ClipDense(_project(tower, outputs[last]), grid_hw, _as_maps(outputs, blocks, grid_hw))


def clip_dense_features(
    model: nn.Module,
    images: Tensor,
    last_block: str = "vanilla",
    position: str = "sclip",
    gaussian_std: float = GAUSSIAN_STD,
) -> tuple[Tensor, tuple[int, int]]:
    """Dense features alone: `features` [B, h * w, E], un-normalised, and `grid_hw` of `clip_dense_forward`."""
    return clip_dense_forward(model, images, (), last_block, position, gaussian_std)[:2]


def clip_block_features(
    model: nn.Module, images: Tensor, blocks: Sequence[int], last_block: str = "vanilla", position: str = "sclip"
) -> list[Tensor]:
    """Outputs of some blocks of `clip_dense_forward` alone; blocks behind the last asked one do not run."""
    grid_hw, outputs = _run(_vit_tower(model), images, blocks, last_block, position)
    return list(_as_maps(outputs, blocks, grid_hw))


def resize_positions(
    positions: Tensor, num_prefix: int, old_hw: tuple[int, int], new_hw: tuple[int, int], how: str = "sclip"
) -> Tensor:
    """Resize the patches' part of a learned position embedding; the prefix tokens' part is kept.

    `positions` are [..., num_prefix + h * w, D], patches row by row, and stay in their dtype; for the same grid as
    before they are returned as they are. All three ways, `how`, are bicubic. "sclip": by scale factors (new + 0.1) /
    old, as DINO, SCLIP and NACLIP do, so that sampling points differ slightly from the exact ratio; "fvit": to the
    exact size, as EVA-CLIP and F-ViT do; "open_clip": to the exact size with antialiasing, as open_clip does when it
    loads a checkpoint.
    """
    if how not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(POSITIONS)}, got {how!r}")
    if positions.shape[-2] != num_prefix + old_hw[0] * old_hw[1]:
        raise ValueError(f"{positions.shape[-2]} positions are not {num_prefix} and a grid of {old_hw}")
    if tuple(new_hw) == tuple(old_hw):
        return positions
    prefix, grid = positions[..., :num_prefix, :], positions[..., num_prefix:, :]
    grid = grid.reshape(1, *old_hw, -1).permute(0, 3, 1, 2)
    grid = grid if grid.dtype == torch.float64 else grid.float()
    if how == "sclip":
        factors = tuple((new + 0.1) / old for new, old in zip(new_hw, old_hw, strict=True))
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=tuple(new_hw), mode="bicubic", antialias=how == "open_clip")
    grid = grid.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat([prefix, grid.reshape(*positions.shape[:-2], -1, positions.shape[-1])], dim=-2)


@contextmanager
def _positions_for(tower: nn.Module, grid_hw: tuple[int, int], how: str) -> Iterator[None]:
    """Let an image tower take images of a patch grid that is not its own while the block runs."""
    trunk = getattr(tower, "trunk", None)
    with ExitStack() as shadows:
        if trunk is None:
            resized = resize_positions(tower.positional_embedding, 1, tower.grid_size, grid_hw, how)
            shadows.enter_context(shadowed(tower, positional_embedding=resized))
        else:
            old_hw = tuple(trunk.patch_embed.grid_size)
            # without img_size timm checks no size, and the convolution floors
            shadows.enter_context(shadowed(trunk.patch_embed, img_size=None, grid_size=grid_hw))
            if trunk.pos_embed is not None:
                num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
                resized = resize_positions(trunk.pos_embed, num_prefix, old_hw, grid_hw, how)
                shadows.enter_context(shadowed(trunk, pos_embed=resized))
            rope = getattr(trunk, "rope", None)
            if getattr(rope, "feat_shape", None) is not None and tuple(rope.feat_shape) != grid_hw:
                other = copy.deepcopy(rope)
                other.update_feat_shape(grid_hw)
                shadows.enter_context(shadowed(trunk, rope=other))
        yield


def _vit_tower(model: nn.Module) -> nn.Module:
    tower = image_tower(unwrap_host(model))
    trunk = getattr(tower, "trunk", None)
    if trunk is not None and (_TRUNKS.isdisjoint(class_names(trunk)) or trunk.attn_pool is not None):
        pool = getattr(trunk, "attn_pool", None)
        what = class_names(trunk)[0] + ("" if pool is None else f" with a learned {type(pool).__name__}")
        raise ValueError(
            f"no dense CLIP features from an open_clip tower with timm trunk {what}; supported are native ViTs and "
            "timm's VisionTransformer and Eva without attention pooling"
        )
    return tower


def _blocks(tower: nn.Module) -> nn.Module:
    return tower.trunk.blocks if hasattr(tower, "trunk") else tower.transformer.resblocks


def _run(
    tower: nn.Module,
    images: Tensor,
    blocks: Sequence[int],
    last_block: str,
    position: str,
    gaussian_std: float = GAUSSIAN_STD,
) -> tuple[tuple[int, int], dict[int, Tensor]]:
    """One pass -> grid, and block -> raw patch tokens [B, N, width]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be float [B, 3, H, W], got {images.dtype} {tuple(images.shape)}")
    depth = len(_blocks(tower))
    if not blocks or any(not 0 <= block < depth for block in blocks):
        raise ValueError(f"blocks must be indices in [0, {depth - 1}] of this tower, at least one, got {list(blocks)}")
    patch_embed = tower.trunk.patch_embed if hasattr(tower, "trunk") else tower
    embedding = patch_embed.proj if hasattr(tower, "trunk") else tower.conv1
    grid_hw = tuple(side // patch for side, patch in zip(images.shape[2:], patch_embed.patch_size, strict=True))
    if 0 in grid_hw:
        raise ValueError(f"images of {tuple(images.shape[2:])} pixels are smaller than a patch of {embedding.stride}")
    indices = sorted(set(blocks))
    # Graphs compiled in place (nn.Module.compile) would not see what is put in place here.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    other_block = replaced_last_block(_blocks(tower)[-1], last_block, grid_hw, gaussian_std)
    with eager, _positions_for(tower, grid_hw, position), other_block:
        how = {"indices": indices, "stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}
        tokens = tower.forward_intermediates(images.to(embedding.weight.dtype), **how)["image_intermediates"]
    if tokens[0].shape[1] != grid_hw[0] * grid_hw[1]:
        raise ValueError(
            f"the tower returned {tokens[0].shape[1]} patch tokens for a {grid_hw[0]} x {grid_hw[1]} grid; patch "
            "dropout must be off: call model.eval()"
        )
    return grid_hw, dict(zip(indices, tokens, strict=True))


def _project(tower: nn.Module, tokens: Tensor) -> Tensor:
    """What the tower does to its class token behind the last block, to every token: [B, N, width] -> [B, N, E]."""
    if hasattr(tower, "trunk"):
        trunk = tower.trunk
        return tower.head(trunk.get_classifier()(trunk.fc_norm(trunk.norm(tokens))))
    tokens = tower.ln_post(tokens)
    return tokens if tower.proj is None else tokens @ tower.proj


def _as_maps(outputs: dict[int, Tensor], blocks: Sequence[int], grid_hw: tuple[int, int]) -> tuple[Tensor, ...]:
    return tuple(outputs[block].transpose(1, 2).unflatten(2, grid_hw) for block in blocks)
