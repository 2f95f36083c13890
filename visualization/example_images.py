"""Images that a figure shows: which ones, as the model gets them and as a reader sees them, and their panel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from figure_style import BOX
from matplotlib.axes import Axes
from torch import Tensor

if TYPE_CHECKING:
    from foreground_images import ForegroundImages

    from last_vit.preprocessing import Preprocessing

_DEFAULT = 6


@dataclass(frozen=True)
class ExampleImages:
    """Chosen images as one model takes them.

    Attributes:
        inputs: float32 [M, 3, S, S], normalised.
        foregrounds: uint8 [M, S, S], as `ForegroundImages` gives them.
        pictures: float32 [M, S, S, 3] in [0, 1], the inputs without their normalisation.
    """

    inputs: Tensor
    foregrounds: Tensor
    pictures: np.ndarray


def choose_images(num_images: int, num_chosen: int | None, seed: int, flag: str) -> list[int]:
    """Indices of the images that a figure shows, ascending: the same for every model of one command.

    Args:
        num_images: How many there are.
        num_chosen: How many are shown; None is 6, or all where there are fewer.
        seed: Of the draw.
        flag: What `num_chosen` is called on the command line.

    Raises:
        ValueError: More than there are.
    """
    if num_chosen is None:
        num_chosen = min(_DEFAULT, num_images)
    if not 0 <= num_chosen <= num_images:
        raise ValueError(f"{flag} must be in [0, {num_images}] (images), got {num_chosen}")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:num_chosen].sort().values.tolist()


def load_examples(images: "ForegroundImages", chosen: Sequence[int], preprocessing: "Preprocessing") -> ExampleImages:
    """Read the chosen images.

    Args:
        images: With the transform of `preprocessing`.
        chosen: At least one index into `images`.
        preprocessing: Of the model.

    Raises:
        ValueError: As `ForegroundImages`.
    """
    samples = [images[index] for index in chosen]
    inputs = torch.stack([sample["image"] for sample in samples])
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    pictures = (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    return ExampleImages(inputs, torch.stack([sample["foreground"] for sample in samples]), pictures.numpy())


def draw_picture(axes: Axes, picture: np.ndarray, foreground: Tensor) -> None:
    """Show an image with the outline of its objects, if any are known.

    Args:
        axes: Gets the crop's pixels as coordinates.
        picture: [S, S, 3] in [0, 1].
        foreground: uint8 [S, S], 1 is object.
    """
    side = len(picture)
    axes.imshow(picture, extent=(0, side, side, 0))
    is_object = (foreground == 1).numpy()
    if is_object.any():
        # a rim of background, so that objects at the border are outlined there too
        padded = np.pad(is_object.astype(float), 1)
        centres = np.arange(-1, side + 1) + 0.5
        for color, width in (("black", 2.2), (BOX, 1.0)):
            axes.contour(centres, centres, padded, levels=[0.5], colors=color, linewidths=width)
    axes.set(xlim=(0, side), ylim=(side, 0))
