"""Which patches show an object: pixels of a foreground map -> patches of a grid (paper Sec. 4, figure 2a).

Every patch gets exactly its share of each pixel, so any grid fits any side; the shares are whole numbers in units of
1 / (h * w) of a pixel, so ties at one half are exact too.

Letters: B images, S the crop's side in pixels, N = h * w patches in row-major order.
"""

import torch
from torch import Tensor

_OBJECT, _UNKNOWN = 1, 255


def patch_foreground(foreground: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The patches that are object, and those of which enough is known to say so.

    Args:
        foreground: uint8 [B, S, S] in the crop's pixels: 1 object, 255 unknown, anything else background.
        grid_hw: (h, w) of the patch grid on the crop, in patches; need not divide S.

    Returns:
        is_foreground: bool [B, N], more than half of the patch's known area is object; false where not known.
        is_known: bool [B, N], at least half of the patch's area is known.
        Both on the device of `foreground`.

    Raises:
        ValueError: Another dtype or shape, or a grid without patches.

    Example:
        >>> left = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 255, 255], [0, 0, 255, 255]]], dtype=torch.uint8)
        >>> patch_foreground(left, (2, 2))
        (tensor([[ True, False, False, False]]), tensor([[ True,  True,  True, False]]))
    """
    if foreground.dtype != torch.uint8 or foreground.ndim != 3 or foreground.shape[1] != foreground.shape[2]:
        raise ValueError(f"foreground must be uint8 [B, S, S], got {foreground.dtype} {tuple(foreground.shape)}")
    if min(grid_hw) < 1:
        raise ValueError(f"grid_hw must be two positive counts, got {tuple(grid_hw)}")
    side = foreground.shape[-1]
    rows, columns = (_overlaps(side, num_patches, foreground.device) for num_patches in grid_hw)
    # double: a CUDA product of whole numbers, exact below 2**53
    object_area, unknown_area = (
        (rows @ (foreground == value).double() @ columns.T).flatten(1) for value in (_OBJECT, _UNKNOWN)
    )
    known_area = side * side - unknown_area
    is_known = 2 * known_area >= side * side
    return (2 * object_area > known_area) & is_known, is_known


def _overlaps(side: int, num_patches: int, device: torch.device) -> Tensor:
    """Length that each pixel shares with each patch along one axis, in 1 / num_patches of a pixel.

    Returns:
        float64 [num_patches, side] of whole numbers; every row sums to `side`.
    """
    pixel = torch.arange(side, device=device) * num_patches
    patch = torch.arange(num_patches, device=device)[:, None] * side
    stop = torch.minimum(pixel + num_patches, patch + side)
    return (stop - torch.maximum(pixel, patch)).clamp(min=0).double()
