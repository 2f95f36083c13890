"""Metrics: tensors in, percentages out; streaming, and exact over any number of processes."""

from last_vit.metrics.point_in_box import PointInBox, box_patch_mask
from last_vit.metrics.top_k import TopK

__all__ = ["PointInBox", "TopK", "box_patch_mask"]
