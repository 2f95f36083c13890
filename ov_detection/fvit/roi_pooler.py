"""RoIAlign over the levels of a pyramid whose strides need not be powers of two.

detectron2's `ROIPooler` refuses the strides of a ViT with patch 14 (3.5, 7, 14, 28), adds another epsilon before it
rounds a box to its level, and rounds coordinates to the features' dtype: in bfloat16, by pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_align


def box_levels(boxes: Tensor, num_levels: int, finest_box: float = 56.0) -> Tensor:
    """Level of each box: floor(log2(sqrt(area) / finest_box + 1e-6)), clamped to the levels (mmdet's rule).

    Args:
        boxes: [R, 4] xyxy in pixels of the network's input.
        num_levels: L.
        finest_box: sqrt(area) from which a box leaves level 0 at twice this size. F-ViT: 56.

    Returns:
        long [R] in [0, L).
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    level = torch.floor(torch.log2(torch.sqrt(width * height) / finest_box + 1e-6))
    return level.clamp(min=0, max=num_levels - 1).long()


class PyramidRoIAlign(nn.Module):
    """Regions of a pyramid, each from the level of its size; in float32 whatever the features are.

    Args:
        output_size: Side of the answer in cells. F-ViT: 7 (boxes), 14 (masks).
        strides: Pixels per cell of each level, finest first. F-ViT: 4, 8, 16, 32, or 3.5, 7, 14, 28 for patch 14.
        finest_box: See `box_levels`.
    """

    def __init__(self, output_size: int, strides: Sequence[float], finest_box: float = 56.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.finest_box = finest_box

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Levels [B, C, h, w] and the boxes of B images -> [R, C, S, S] float32, images in order.

        Raises:
            ValueError: Another number of maps than of strides.
        """
        if len(maps) != len(self.strides):
            raise ValueError(f"{len(maps)} feature maps for {len(self.strides)} strides {self.strides}")
        regions = convert_boxes_to_pooler_format(list(boxes)).float()
        levels = box_levels(regions[:, 1:], len(maps), self.finest_box)
        size = self.output_size
        pooled = regions.new_zeros(len(regions), maps[0].shape[1], size, size)
        with torch.autocast(regions.device.type, enabled=False):
            for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
                mine = torch.nonzero(levels == level).squeeze(1)
                cells = roi_align(features.float(), regions[mine], size, 1 / stride, aligned=True)
                pooled = pooled.index_put((mine,), cells)
        return pooled
