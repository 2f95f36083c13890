"""The detector's training step; what it draws are the anchors and regions for the losses."""

from typing import Any

from detectron2.engine import SimpleTrainer
from torch import Tensor

from last_vit.train_lib import RepeatableSteps


class OvTrainer(RepeatableSteps, SimpleTrainer):
    """Trains on detectron2's lists of samples; see `RepeatableSteps` for the arguments."""

    def backward(self, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], int]:
        """Gradients of the sum of the detector's losses."""
        with self.autocast():
            losses = self.model(batch)
        sum(losses.values()).backward()
        return {name: value.detach() for name, value in losses.items()}, len(batch)
