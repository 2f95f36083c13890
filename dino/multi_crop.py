"""Backbone and head over crops of several sizes: one backbone pass per size, one head pass for all."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn


class MultiCrop(nn.Module):
    """DINO's student or teacher; the names `backbone.*` and `head.*` are those of its checkpoints.

    Args:
        backbone: Images [B, 3, H, W] -> tokens [B, D].
        head: Tokens [B, D] -> logits [B, C].
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """Logits of all crops.

        Args:
            crops: Each [B, 3, h, w]; neighbours of one size go through the backbone together.

        Returns:
            [len(crops) * B, C]: all images of the first crop, then of the second, ...
        """
        groups = (torch.cat(list(same_size)) for _, same_size in groupby(crops, key=lambda crop: crop.shape[2:]))
        return self.head(torch.cat([self.backbone(group) for group in groups]))
