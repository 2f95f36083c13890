"""PAMR, pixel-adaptive mask refinement (Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels").

Each step replaces the scores of a pixel by a weighted mean of its neighbours' scores: the eight at every dilation d,
d pixels away, edges repeated outwards. Weights come from the image alone: with the neighbour's absolute difference in
colour |x - x'| and the local standard deviation s of each channel (over the same neighbours and the pixel itself, once
per dilation), a neighbour's weight is softmax over neighbours of mean over channels of -|x - x'| / (0.1 s + 1e-8).

The weights are the same for every name, so names are refined apart, as many at a time as memory allows; a step holds
three copies of their maps, not one per neighbour.
"""

from collections.abc import Iterator, Sequence

import torch
from label_maps import ScoreMaps
from torch import Tensor
from torch.nn import functional as F

NUM_STEPS, DILATIONS = 10, (8, 16)
_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


class RefinedMaps:
    """Score maps [Q, H, W] of which each name is refined as it is made, by an image, float [3, H, W].

    A factor or an offset per channel of the image changes nothing (but for the 1e-8). `maps` are as `ScoreMaps` are
    indexed, or a tensor.
    """

    def __init__(
        self, maps: ScoreMaps, image: Tensor, num_steps: int = NUM_STEPS, dilations: Sequence[int] = DILATIONS
    ) -> None:
        self._maps, self.output_hw = maps, tuple(image.shape[1:])
        self.num_steps, self.dilations = num_steps, tuple(dilations)
        neighbours = torch.stack(list(self._neighbours(image)))
        centres = image.expand(len(self.dilations), *image.shape)
        spread = torch.cat([neighbours, centres]).std(dim=0)
        distance = (neighbours - image).abs_().div_(0.1 * spread + 1e-8).mean(dim=1)
        self._weights = (-distance).softmax(dim=0)  # [8 * dilations, H, W]

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, names: slice | list[int]) -> Tensor:
        """The refined maps of some names: [names, H, W]."""
        maps = self._maps[names]
        # on a CPU name by name, which stays in its cache: up to twice as fast
        groups = maps.split(1 if maps.device.type == "cpu" else max(1, len(maps)))
        return torch.cat([self._refine(group) for group in groups])

    def _refine(self, maps: Tensor) -> Tensor:
        weights = self._weights.to(maps.dtype)
        for _ in range(self.num_steps):
            refined = torch.zeros_like(maps)
            for weight, neighbour in zip(weights, self._neighbours(maps), strict=True):
                refined.addcmul_(weight, neighbour)
            maps = refined
        return maps

    def _neighbours(self, maps: Tensor) -> Iterator[Tensor]:
        """Maps [Q, H, W] shifted to each neighbour in turn."""
        height, width = maps.shape[1:]
        reach = max(self.dilations)
        padded = F.pad(maps[None], (reach,) * 4, mode="replicate")[0]
        for dilation in self.dilations:
            for dy, dx in _OFFSETS:
                top, left = reach + dy * dilation, reach + dx * dilation
                yield padded[:, top : top + height, left : left + width]
