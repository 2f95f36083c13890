"""Position embeddings of a CLIP image tower for a patch grid that is not its own, for the length of one forward pass.

Learned embeddings are resized, rotary ones (EVA) are made for the grid by timm's own code. The tower's parameters stay
as they are: for the duration of a `with` block, plain attributes of the same names stand in front of them.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = ("sclip", "fvit", "open_clip")
_MISSING = object()


@contextmanager
def shadowed(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Let plain attributes hide a module's parameters, buffers, methods or attributes, and take them away again.

    Args:
        module: Changed only while the block runs.
        attributes: Name -> what the module's own code finds under that name.
    """
    own = vars(module)
    before = {name: own.get(name, _MISSING) for name in attributes}
    own.update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _MISSING:
                del own[name]
            else:
                own[name] = value


def resize_positions(
    positions: Tensor, num_prefix: int, old_hw: tuple[int, int], new_hw: tuple[int, int], how: str = "sclip"
) -> Tensor:
    """Resize the patches' part of a learned position embedding; the prefix tokens' part is kept.

    Args:
        positions: [..., num_prefix + h * w, D], patches row by row.
        num_prefix: Tokens before the patches that have an embedding.
        old_hw: (h, w) that it was learned for.
        new_hw: (h, w) wanted; equal to `old_hw` the embedding is returned as it is.
        how: All three are bicubic. "sclip": by scale factors (new + 0.1) / old, as DINO, SCLIP and NACLIP do, so that
            sampling points differ slightly from the exact ratio; "fvit": to the exact size, as EVA-CLIP and F-ViT do;
            "open_clip": to the exact size with antialiasing, as open_clip does when it loads a checkpoint.

    Returns:
        [..., num_prefix + new h * new w, D], in the dtype of `positions`.

    Raises:
        ValueError: Another `how`; positions that are not those of `old_hw`.

    Example:
        >>> resize_positions(torch.ones(1 + 4, 8), 1, (2, 2), (3, 5)).shape
        torch.Size([16, 8])
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
def positions_for(tower: nn.Module, grid_hw: tuple[int, int], how: str) -> Iterator[None]:
    """Let an open_clip image tower take images of any size while the block runs.

    Args:
        tower: Native `VisionTransformer`, or `TimmModel` with a ViT or EVA trunk.
        grid_hw: (h, w) of the patch grid of the images.
        how: As in `resize_positions`.
    """
    trunk = getattr(tower, "trunk", None)
    with ExitStack() as shadows:
        if trunk is None:
            resized = resize_positions(tower.positional_embedding, 1, tower.grid_size, grid_hw, how)
            shadows.enter_context(shadowed(tower, positional_embedding=resized))
        else:
            old_hw = tuple(trunk.patch_embed.grid_size)
            # without img_size timm checks no size, and the convolution floors
            shadows.enter_context(shadowed(trunk.patch_embed, img_size=None, grid_size=tuple(grid_hw)))
            if trunk.pos_embed is not None:
                num_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
                resized = resize_positions(trunk.pos_embed, num_prefix, old_hw, grid_hw, how)
                shadows.enter_context(shadowed(trunk, pos_embed=resized))
            rope = getattr(trunk, "rope", None)
            if getattr(rope, "feat_shape", None) is not None and tuple(rope.feat_shape) != tuple(grid_hw):
                other = copy.deepcopy(rope)
                other.update_feat_shape(tuple(grid_hw))
                shadows.enter_context(shadowed(trunk, rope=other))
        yield
