"""From score maps to a label per pixel, name by name: softmax over all names, the best name of a class, thresholds.

The published rule, for cosines c of Q names at a pixel: p = softmax(scale * c) over all names; a class's probability is
that of its best name; the pixel gets the most probable class, or class 0, the background, where that probability is
below a threshold. SCLIP on VOC21 first drops classes that cover too little of an image.

All names share the softmax's denominator, so the most probable name is the one of greatest cosine, and probabilities
are needed for the threshold only. Names are taken a few at a time: the plain rule, without [Q, H, W] in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

CHUNK_BYTES = 2**25


class ScoreMaps(Protocol):
    """Maps of Q names over H x W pixels, such as `StitchedMaps`."""

    output_hw: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, names: slice | list[int]) -> Tensor: ...


@dataclass(frozen=True)
class LabelRule:
    """How scores become labels; ValueError for no names, a class without a name, or a value outside its range."""

    class_of_name: Sequence[int]  # class of each of the Q names
    logit_scale: float  # factor of the cosines in the softmax
    prob_threshold: float = 0.0  # pixels whose best probability is below become class 0; 0 is no threshold
    # Classes other than 0 whose share of the pixels of all those classes is not above this are dropped, and their
    # pixels go to the best class that is left; None drops none. Judged before the probability threshold.
    area_threshold: float | None = None

    def __post_init__(self) -> None:
        classes = set(self.class_of_name)
        if not classes or classes != set(range(len(classes))):
            raise ValueError(f"every class from 0 on needs a name, got names of the classes {sorted(classes)}")
        if not self.logit_scale > 0:
            raise ValueError(f"the logit scale must be positive, got {self.logit_scale}")
        if not 0 <= self.prob_threshold < 1:
            raise ValueError(f"the probability threshold must be in [0, 1), got {self.prob_threshold}")
        if self.area_threshold is not None and not 0 <= self.area_threshold < 1:
            raise ValueError(f"the area threshold must be in [0, 1), got {self.area_threshold}")

    @property
    def num_classes(self) -> int:
        """C."""
        return max(self.class_of_name) + 1


def label_pixels(maps: ScoreMaps, rule: LabelRule, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """The class of every pixel: int64 [H, W], 0 to C - 1, on the maps' device.

    `maps` are cosines of the rule's names, of which `chunk_bytes` are made at a time; at least one map is.
    """
    names = range(len(maps))
    best, name, log_sum = _reduce(maps, names, rule.logit_scale if rule.prob_threshold > 0 else None, chunk_bytes)
    class_of_name = _on_device(tuple(rule.class_of_name), best.device)
    label = class_of_name[name]
    if rule.area_threshold is not None:
        area = torch.bincount(label.flatten(), minlength=rule.num_classes)
        area[0] = 0
        is_kept = area > rule.area_threshold * area.sum()
        is_kept[0] = True
        if not is_kept[label].all():
            kept_classes = is_kept.tolist()
            kept = [index for index in names if kept_classes[rule.class_of_name[index]]]
            best, position, _ = _reduce(maps, kept, None, chunk_bytes)
            label = _on_device(tuple(rule.class_of_name[index] for index in kept), best.device)[position]
    if log_sum is not None:
        label[(rule.logit_scale * best - log_sum).exp() < rule.prob_threshold] = 0
    return label


def _reduce(
    maps: ScoreMaps, names: Sequence[int], logit_scale: float | None, chunk_bytes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Per pixel the greatest score [H, W], its position in `names` [H, W], and log sum exp(logit_scale * score)."""
    height, width = maps.output_hw
    step = max(1, chunk_bytes // (4 * height * width))
    best = position = log_sum = None
    for first in range(0, len(names), step):
        part = names[first : first + step]
        # a list of indices would be copied to the device, and a GPU waited for
        chunk = maps[slice(part.start, part.stop) if isinstance(part, range) else part]
        highest, where = chunk.max(dim=0)
        if logit_scale is not None:
            chunk_sum = chunk.mul_(logit_scale).logsumexp(dim=0)
            log_sum = chunk_sum if log_sum is None else torch.logaddexp(log_sum, chunk_sum)
        if best is None:
            best, position = highest, where
        else:
            is_better = highest > best
            best = torch.where(is_better, highest, best)
            position = torch.where(is_better, where + first, position)
    return best, position, log_sum


@lru_cache(maxsize=64)
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int64, kept for the next image: every copy of numbers to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
