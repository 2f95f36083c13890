"""Box deltas as F-ViT (mmdet) decodes them: sides may shrink no more than they may grow."""

import math

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


class ClampedBoxTransform(Box2BoxTransform):
    """detectron2's transform with log scales clamped on both sides; detectron2 clamps growth only.

    Args:
        stds: Standard deviations of (dx, dy, dw, dh), the reciprocals of detectron2's weights. F-ViT: (1, 1, 1, 1) for
            anchors, (0.1, 0.1, 0.2, 0.2) for RoIs.
        max_scale: Largest factor between the sides of a box and of its prediction, either way. F-ViT: 1000 / 16.
    """

    def __init__(self, stds: tuple[float, float, float, float], max_scale: float = 1000.0 / 16) -> None:
        dx, dy, dw, dh = stds  # of a config, so perhaps a list
        super().__init__((1 / dx, 1 / dy, 1 / dw, 1 / dh), math.log(max_scale))

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """[R, 4 K] deltas and [R, 4] xyxy boxes -> [R, 4 K] xyxy boxes, float32."""
        dx, dy, dw, dh = deltas.float().unflatten(1, (-1, 4)).unbind(-1)
        dw, dh = (
            size.clamp(min=-self.scale_clamp * weight) for size, weight in zip((dw, dh), self.weights[2:], strict=True)
        )
        return super().apply_deltas(torch.stack((dx, dy, dw, dh), dim=-1).flatten(1), boxes)
