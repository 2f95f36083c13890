"""Zero-shot segmentation of images by a CLIP: windows in batches, cosines with class names, a label per pixel.

The model is a function from images to dense features and the classes are text embeddings (last_vit/clip_dense.py and
last_vit/clip_text.py make the two), so this knows neither towers nor data sets.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from label_maps import LabelRule, label_pixels
from pamr import RefinedMaps
from sliding_window import StitchedMaps, WindowPlan, plan_windows
from torch import Tensor
from torch.nn import functional as F


class WindowScores(NamedTuple):
    """Cosines of one image's windows."""

    scores: Tensor  # float32 [windows, h * w, Q]
    plan: WindowPlan
    grid_hw: tuple[int, int]


@dataclass(frozen=True)
class ZeroShotSegmenter:
    """Everything but the images."""

    # images [B, 3, H, W], normalised, of one size -> projected patch features [B, h * w, E], of any length, and (h, w)
    dense: Callable[[Tensor], tuple[Tensor, tuple[int, int]]]
    text: Tensor  # float32 [Q, E], L2-normalised, on the device where `dense` computes
    rule: LabelRule  # from cosines to labels
    mean: Sequence[float]  # normalisation per RGB channel, of values in [0, 1]
    std: Sequence[float]
    patch_size: int  # of the model, in pixels
    crop: int  # of a window in pixels; 0 is the whole image at once
    stride: int  # from window to window, in pixels
    pad_to_patch: bool = False  # as in `plan_windows`
    uses_pamr: bool = False  # refine the scores by the image (clip/pamr.py)
    window_batch: int = 64  # windows per forward pass, at most

    def __call__(self, images: Sequence[Tensor], output_hws: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Segment uint8 [3, H', W'] images as the model is to see them: int64 [H, W] of each of `output_hws`."""
        with torch.inference_mode():
            images = [self.normalise(image) for image in images]
            found = zip(images, self.window_scores(images), output_hws, strict=True)
            return [self.labels(image, scores, output_hw) for image, scores, output_hw in found]

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [3, H', W'] -> float32 [3, H', W'] on the device of `text`."""
        mean, std = self._mean_std
        return (image.to(self.text.device, non_blocking=True).float() / 255 - mean) / std

    @cached_property
    def _mean_std(self) -> Tensor:
        """[2, 3, 1, 1] on the device, made once: every copy of numbers to a GPU waits for it."""
        return torch.tensor([self.mean, self.std], device=self.text.device)[:, :, None, None]

    def window_scores(self, images: Sequence[Tensor]) -> list[WindowScores]:
        """Cosines of every window of normalised images, in batches that windows of one size share across images."""
        plans = [
            plan_windows(tuple(image.shape[1:]), self.crop, self.stride, self.patch_size, self.pad_to_patch)
            for image in images
        ]
        windows = [plan.cut(image) for plan, image in zip(plans, images, strict=True)]
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, each in enumerate(windows):
            of_size[tuple(each.shape[2:])].append(index)
        found: dict[int, WindowScores] = {}
        for indices in of_size.values():
            batches = torch.cat([windows[index] for index in indices]).split(self.window_batch)
            parts, grid_hw = [], (0, 0)
            for batch in batches:
                features, grid_hw = self.dense(batch)
                parts.append(F.normalize(features.float(), dim=-1) @ self.text.T)
            shares = torch.cat(parts).split([len(windows[index]) for index in indices])
            for index, scores in zip(indices, shares, strict=True):
                found[index] = WindowScores(scores, plans[index], grid_hw)
        return [found[index] for index in range(len(images))]

    def labels(self, image: Tensor, found: WindowScores, output_hw: tuple[int, int]) -> Tensor:
        """The label of every pixel of one normalised image, from its windows' cosines: int64 [H, W]."""
        maps = StitchedMaps(found.scores, found.plan, found.grid_hw, output_hw)
        if self.uses_pamr:
            at_output = F.interpolate(image[None], size=output_hw, mode="bilinear", align_corners=False)[0]
            maps = RefinedMaps(maps, at_output)
        return label_pixels(maps, self.rule)
