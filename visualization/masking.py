"""Blanking out patches of an image by their rank: the masking probe's two pure steps (paper Sec. 4, figure 2b).

A masked pixel is 0 in normalised space, the data set's mean colour, as in the released code of June 2025. Ranks come
from any score: a model's patch scores, or `random_scores` as the control. No label is looked at.

Letters: B images, N = h * w patches in row-major order.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ORDERS = ("top", "bottom")


def choose_patches(score: Tensor, share: float, order: str = "top") -> Tensor:
    """The share of every image's patches that score highest, or lowest.

    "bottom" counts from the end of the same ranking that "top" counts from the start of, so the two are disjoint up to
    a half and complete each other: the bottom p are all but the top 1 - p (where both are whole numbers of patches).

    Args:
        score: Real [B, N] without NaN. Of patches that tie, the first ranks highest.
        share: In [0, 1]; exactly the nearest whole number to share * N is chosen in each image, halves up.
        order: One of `ORDERS`.

    Returns:
        bool [B, N].

    Raises:
        ValueError: Another rank, a share outside [0, 1], or an unknown order.

    Example:
        >>> choose_patches(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), share=0.5)
        tensor([[False,  True, False,  True]])
    """
    if score.ndim != 2:
        raise ValueError(f"score must be [B, N], got {tuple(score.shape)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    num_patches = score.shape[1]
    # 9 digits: 0.29 * 50 is meant to be 14.5, of which binary fractions make a little less
    num_chosen = math.floor(round(share * num_patches, 9) + 0.5)
    ranking = score.argsort(dim=1, descending=True, stable=True)
    chosen = ranking[:, :num_chosen] if order == "top" else ranking[:, num_patches - num_chosen :]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen, True)


def mask_patches(images: Tensor, drop: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Set all pixels of chosen patches to 0.

    A pixel belongs to the patch that its centre lies in (the lower or right one on a border), which is the patch itself
    where the grid divides the image and the nearest there is where it does not.

    Args:
        images: Float [B, 3, H, W], normalised, so that 0 is the mean colour.
        drop: bool [B, N], the patches to blank out.
        grid_hw: (h, w) of the patch grid on the image, in patches.

    Returns:
        A copy of `images` with those pixels 0.

    Raises:
        ValueError: Shapes that disagree, or a grid finer than the image.

    Example:
        >>> mask_patches(torch.ones(1, 1, 2, 4), torch.tensor([[True, False]]), (1, 2))
        tensor([[[[0., 0., 1., 1.],
                  [0., 0., 1., 1.]]]])
    """
    (height, width), num_patches = grid_hw, math.prod(grid_hw)
    if images.ndim != 4 or drop.dtype != torch.bool or drop.shape != (len(images), num_patches):
        raise ValueError(
            f"expected images [B, 3, H, W] and drop bool [B, {num_patches}] for a grid of {tuple(grid_hw)}, got "
            f"{tuple(images.shape)} and {drop.dtype} {tuple(drop.shape)}"
        )
    if not (1 <= height <= images.shape[2] and 1 <= width <= images.shape[3]):
        raise ValueError(f"a grid of {tuple(grid_hw)} does not fit an image of {tuple(images.shape[2:])} pixels")
    rows, columns = (_patch_of_pixel(*sizes, drop.device) for sizes in zip(images.shape[2:], grid_hw, strict=True))
    pixels = drop.unflatten(1, grid_hw)[:, rows[:, None], columns]
    return images.masked_fill(pixels[:, None], 0.0)


def random_scores(image_index: Sequence[int], num_patches: int, seed: int) -> Tensor:
    """Scores that rank patches at random, the same for an image whatever batch, process or order it comes in.

    Args:
        image_index: B >= 1 numbers of images, such as their places in the data set.
        num_patches: N.
        seed: Not negative; draws another ranking of every image.

    Returns:
        float32 [B, N], uniform in [0, 1), on the CPU.

    Raises:
        ValueError: A negative index or seed.
    """
    if seed < 0 or min(image_index) < 0:
        raise ValueError(f"seed and image indices must not be negative, got {seed} and {list(image_index)}")
    # numpy's generator takes the pair as it is; of torch's seeds the CPU generator uses the low 32 bits only
    rows = [np.random.default_rng([seed, int(index)]).random(num_patches, dtype=np.float32) for index in image_index]
    return torch.from_numpy(np.stack(rows))


def _patch_of_pixel(num_pixels: int, num_patches: int, device: torch.device) -> Tensor:
    """Along one axis, the patch that each pixel's centre lies in: long [num_pixels]; whole numbers, so exact."""
    return (2 * torch.arange(num_pixels, device=device) + 1) * num_patches // (2 * num_pixels)
