"""Coarse segmentation: Jaccard index of a model's foreground map with annotated objects (paper Tab. 6).

The paper compares one binary map with "all ground truth foreground regions" and leaves open what a region is, so that
is a named protocol, and every record holds it:

- "union": one region, the pixels of all objects together.
- "class": one region per class that the image shows, as in CRATE's evaluation.
- "object": one region per object, as in DINO's evaluation.

A map's Jaccard index with a region is |map and region| / |map or region|. Of several maps of one image (the heads of an
attention) each region takes the best. The score of an image is the mean over its regions, the result the mean over
images. Void pixels (VOC's 255, the rim of objects) belong neither to map nor region. Images without any region are left
out and counted.

Letters: M maps of one image, H x W pixels (or patches, where the ground truth was brought to the grid).
"""

from typing import Literal

import torch
from torch import Tensor

from last_vit.metrics.summed_counters import SummedCounters

PROTOCOLS = ("union", "class", "object")
VOID = 255


class CoarseSegmentation:
    """Streaming mean Jaccard index, summed over all processes in `compute`.

    Args:
        protocol: One of `PROTOCOLS`.

    Raises:
        ValueError: Unknown protocol.
    """

    def __init__(self, protocol: Literal["union", "class", "object"]) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
        self.protocol = protocol
        self._counters = SummedCounters("num_images", "num_empty", "num_regions", "jaccard")

    def update(self, maps: Tensor, class_mask: Tensor, object_mask: Tensor) -> float | None:
        """Count one image.

        Args:
            maps: bool [M, H, W], what the model holds to be foreground.
            class_mask: uint8 [H, W], 0 background, 255 void, else the class (VOC's SegmentationClass).
            object_mask: uint8 [H, W], 0 background, 255 void, else the object (VOC's SegmentationObject).

        Returns:
            The image's score in [0, 1]; None for an image without a region.

        Raises:
            ValueError: Shapes that disagree, or maps that are not boolean.

        Example:
            >>> metric = CoarseSegmentation("union")
            >>> truth = torch.tensor([[1, 1, 0, 255]], dtype=torch.uint8)
            >>> metric.update(torch.tensor([[[True, False, False, True]]]), truth, truth)
            0.5
        """
        if maps.dtype != torch.bool or maps.ndim != 3 or not len(maps):
            raise ValueError(f"maps must be bool [M, H, W] with M >= 1, got {maps.dtype} {tuple(maps.shape)}")
        if maps.shape[1:] != class_mask.shape or maps.shape[1:] != object_mask.shape:
            raise ValueError(
                f"maps {tuple(maps.shape[1:])}, class mask {tuple(class_mask.shape)} and object mask "
                f"{tuple(object_mask.shape)} must be of one size: up-sample the maps or give all at the grid's size"
            )
        jaccard = self._best_jaccard(maps, class_mask.to(maps.device), object_mask.to(maps.device))
        score = jaccard.mean() if len(jaccard) else None
        self._counters.add(
            num_images=torch.tensor(score is not None),
            num_empty=torch.tensor(score is None),
            num_regions=torch.tensor(len(jaccard)),
            jaccard=torch.zeros(()) if score is None else score.cpu(),
        )
        return None if score is None else float(score)

    def compute(self) -> dict[str, float]:
        """The result over everything counted by all processes.

        Returns:
            "miou" in percent, "num_images" (with a region), "num_empty" (without) and "num_regions".

        Raises:
            ValueError: If no image had a region.
        """
        totals = self._counters.totals()
        if not totals["num_images"]:
            raise ValueError(
                f"coarse segmentation of zero images is undefined: none of {int(totals['num_empty'])} images has an "
                f"annotated region; check the masks"
            )
        return {
            "miou": 100.0 * totals["jaccard"] / totals["num_images"],
            **{name: int(totals[name]) for name in ("num_images", "num_empty", "num_regions")},
        }

    def _best_jaccard(self, maps: Tensor, class_mask: Tensor, object_mask: Tensor) -> Tensor:
        """The best map's Jaccard index of every region: float64 [R]."""
        labels = object_mask if self.protocol == "object" else class_mask
        is_known = labels != VOID
        if self.protocol == "union":
            labels = (labels != 0).to(torch.uint8)
        labels, maps = labels[is_known].long(), maps[:, is_known].double()
        num_labels = int(labels.max()) + 1 if len(labels) else 1
        in_region = torch.zeros(num_labels, len(labels), dtype=torch.float64, device=maps.device)
        in_region[labels, torch.arange(len(labels), device=maps.device)] = 1
        overlap = maps @ in_region.T
        size = in_region.sum(dim=1)
        union = maps.sum(dim=1, keepdim=True) + size - overlap
        is_region = size > 0
        is_region[0] = False  # background
        return (overlap / union.clamp_min(1))[:, is_region].amax(dim=0)
