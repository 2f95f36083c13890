"""What a host makes of images of another size than its own, found by running it on zeros, in the same way for all."""

import torch
from torch import nn

from last_vit.dense import dense_forward


@torch.inference_mode()
def find_patch_size(model: nn.Module, side: int) -> int:
    """Side in pixels of a host's patches (of a ConvNet, its stride), on any device, in eval mode.

    `side` is that of the square images that it was made for, for a ConvNet a multiple of its stride. ValueError for
    patches that are not square, or do not fill the image.
    """
    height, width = dense_forward(model, _zeros(model, side, side)).grid_hw
    if height != width or side % height:
        raise ValueError(
            f"{side} x {side} pixels make a grid of {height} x {width} patches (h x w), but padding to whole patches "
            "needs square ones that fill the image"
        )
    return side // height


@torch.inference_mode()
def takes_any_size(model: nn.Module, side: int, patch_size: int) -> bool:
    """Whether a host, as in `find_patch_size`, takes an image that is a patch wider than what it was made for."""
    try:
        dense_forward(model, _zeros(model, side, side + patch_size))
    except (ValueError, AssertionError):  # timm asserts its input size
        return False
    return True


def _zeros(model: nn.Module, height: int, width: int) -> torch.Tensor:
    """An image in the type of the first convolution, which CLIP's precisions do not give to every weight."""
    weight = next(weight for weight in model.parameters() if weight.ndim == 4)
    return torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
