"""Dense scores of an image from overlapping windows: where they lie, and how their score maps become one.

Windows start every `stride` pixels; the last one of a row or column is shifted inside, so that all are of one size and
can be computed as one batch. Each window's map of scores [h, w] is stretched (bilinear) to the window's pixels, windows
are averaged where they overlap, and the result is stretched to the size of the annotation.

All of this is linear and acts on rows and columns apart, because the windows are a grid. So it is one product
`rows @ maps @ columns.T` per name, with two small matrices that hold both stretches and the average.

Letters: Q names, m x n windows, h x w patches per window, H x W pixels of the result.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class WindowAxis:
    """The windows along one side of an image, in pixels."""

    length: int  # of the image
    starts: tuple[int, ...]  # first pixel of each window
    window: int  # length of every window
    pad: tuple[int, int] = (0, 0)  # zeros before and after each window, so that it is of whole patches
    is_whole: bool = False  # one window that is the image: its map is stretched to the result at once

    def stitch_matrix(self, num_patches: int, output: int) -> Tensor:
        """What brings the windows' patches, side by side, to the result: float64 [output, m * num_patches].

        Rows sum to 1; `num_patches` are per window along this side, padding included.
        """
        if self.is_whole:
            return _stretch_matrix(num_patches, output)
        before, after = self.pad
        to_pixels = _stretch_matrix(num_patches, before + self.window + after)[before : before + self.window]
        placed = torch.zeros(self.length, len(self.starts), num_patches, dtype=torch.float64)
        count = torch.zeros(self.length, 1, dtype=torch.float64)
        for index, start in enumerate(self.starts):
            placed[start : start + self.window, index] = to_pixels
            count[start : start + self.window] += 1
        return _stretch(placed.flatten(1) / count, output)


@dataclass(frozen=True)
class WindowPlan:
    """The windows of an image: every pair of a row of `rows` and a column of `columns`, row by row."""

    rows: WindowAxis
    columns: WindowAxis

    def cut(self, image: Tensor) -> Tensor:
        """The windows of an image [3, H', W'] of the planned size, padded: [m * n, 3, window height, window width]."""
        rows, columns = self.rows, self.columns
        bands = [image[:, top : top + rows.window] for top in rows.starts]
        windows = [band[..., left : left + columns.window] for band in bands for left in columns.starts]
        return F.pad(torch.stack(windows), (*columns.pad, *rows.pad))


class StitchedMaps:
    """Score maps of all names over one image, made on demand at the annotation's size, `output_hw`.

    `scores` are [m * n, h * w, Q], per window in the order of `WindowPlan.cut`.
    """

    def __init__(self, scores: Tensor, plan: WindowPlan, grid_hw: tuple[int, int], output_hw: tuple[int, int]) -> None:
        (h, w), m, n = grid_hw, len(plan.rows.starts), len(plan.columns.starts)
        self._blocks = scores.reshape(m, n, h, w, -1).permute(4, 0, 2, 1, 3).reshape(-1, m * h, n * w)
        self._rows = _stitch_matrix_like(plan.rows, h, output_hw[0], scores.dtype, scores.device)
        self._columns = _stitch_matrix_like(plan.columns, w, output_hw[1], scores.dtype, scores.device)
        self.output_hw = output_hw

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, names: slice | list[int]) -> Tensor:
        """The maps of some names: [names, H, W], in the scores' type."""
        return self._rows @ (self._blocks[names] @ self._columns.T)


def plan_windows(
    image_hw: tuple[int, int], crop: int, stride: int, patch_size: int, pad_to_patch: bool = False
) -> WindowPlan:
    """Where the windows of an image lie.

    An image smaller than the crop, on either side, gets windows of its own length on that side. A window that is not of
    whole patches loses the rest to the model's patch embedding, and its map is stretched to the full window (SCLIP,
    NACLIP), or it is padded with zeros on both sides (ClearCLIP). `image_hw` is (H', W') of the image that the model
    sees; `crop` 0 is the whole image at once, which is never padded. ValueError for what is smaller than a patch.
    """
    if crop and crop < patch_size:
        raise ValueError(
            f"the crop must be 0 (the whole image) or at least a patch of {patch_size} pixels, got {crop} pixels"
        )
    if crop and not 1 <= stride <= crop:
        raise ValueError(
            f"the stride must be in [1, {crop}] (the crop) so that windows move and leave no gap, got {stride}; for "
            f"the whole image at once, set the crop to 0"
        )
    if min(image_hw) < patch_size and not (crop and pad_to_patch):
        raise ValueError(f"an image of {image_hw[0]} x {image_hw[1]} pixels is smaller than a patch of {patch_size}")
    rows, columns = (_plan_axis(length, crop, stride, patch_size, pad_to_patch) for length in image_hw)
    return WindowPlan(rows, columns)


def _stretch_matrix(num_cells: int, output: int) -> Tensor:
    return _stretch(torch.eye(num_cells, dtype=torch.float64), output)


def _stretch(cells: Tensor, output: int) -> Tensor:
    """Every column bilinearly stretched, corners not aligned, no antialias: [cells, n] -> [output, n]."""
    return F.interpolate(cells.T[None], size=output, mode="linear", align_corners=False)[0].T


@lru_cache(maxsize=64)
def _stitch_matrix_like(
    axis: WindowAxis, num_patches: int, output: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`WindowAxis.stitch_matrix` where it is used; most images of a data set have one of a few lengths."""
    with torch.inference_mode(False):  # what is kept may be used in any mode
        return axis.stitch_matrix(num_patches, output).to(device, dtype)


def _plan_axis(length: int, crop: int, stride: int, patch_size: int, pad_to_patch: bool) -> WindowAxis:
    if not crop:
        return WindowAxis(length, (0,), length, is_whole=True)
    window = min(crop, length)
    number = -(-(length - window) // stride) + 1
    missing = -window % patch_size if pad_to_patch else 0
    pad = (missing // 2, missing - missing // 2)
    return WindowAxis(length, tuple(min(i * stride, length - window) for i in range(number)), window, pad)
