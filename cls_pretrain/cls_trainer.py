"""The classifier's training step: forward and backward over micro-batches."""

import contextlib
from typing import Any

from detectron2.engine import SimpleTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from last_vit.lazy.trainer import RepeatableSteps


class ClsTrainer(RepeatableSteps, SimpleTrainer):
    """Trains on dicts with "image" float [B, 3, H, W] and "label" long [B].

    Args:
        accumulation_steps: Micro-batches that a process's batch is split into; the gradient is that of the whole.
        kwargs: As `RepeatableSteps`; the model takes (images, labels) and returns a dict of losses.

    Raises:
        ValueError: Less than one micro-batch.
    """

    def __init__(self, *, accumulation_steps: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if accumulation_steps < 1:
            raise ValueError(f"train.accumulation_steps must be at least 1, got {accumulation_steps}")
        self.accumulation_steps = accumulation_steps

    def backward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Gradients of the mean loss over the batch."""
        images = batch["image"].to(self.device, non_blocking=True)
        labels = batch["label"].to(self.device, non_blocking=True)
        totals: dict[str, Tensor] = {}
        chunks = list(zip(images.chunk(self.accumulation_steps), labels.chunk(self.accumulation_steps), strict=True))
        for i, (image_chunk, label_chunk) in enumerate(chunks):
            last = i + 1 == len(chunks)
            is_ddp = isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if is_ddp and not last else contextlib.nullcontext():
                with self.autocast():
                    losses = self.model(image_chunk, label_chunk)
                share = len(image_chunk) / len(images)
                (sum(losses.values()) * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * share
        return totals, len(images)
