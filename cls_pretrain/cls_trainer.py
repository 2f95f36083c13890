"""One training step of cls_pretrain on detectron2's trainer, such that a run can be resumed bit by bit.

Order and augmentation of the data depend on (seed, position) and the step's own randomness on (seed, iteration), so a
checkpoint needs no random state and a run continues exactly where it was killed.
"""

import contextlib
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from last_vit.runtime import all_reduce_sum


class ClsTrainer(SimpleTrainer):
    """One step: forward and backward over micro-batches, checked for NaN before the weights are touched.

    Args:
        model: Takes (images, labels), returns a dict of losses.
        data_loader: Yields dicts with "image" float [B, 3, H, W] and "label" long [B].
        optimizer: Over the model's parameters.
        device: Where the batch goes.
        seed: Seeds every step together with its iteration and rank (dropout, drop path).
        bf16: Forward under bfloat16 autocast.
        clip_grad_norm: Largest L2 norm of the whole gradient; 0 leaves it alone.
        accumulation_steps: Micro-batches that a process's batch is split into; the gradient is that of the whole.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        seed: int = 0,
        bf16: bool = False,
        clip_grad_norm: float = 0.0,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if accumulation_steps < 1:
            raise ValueError(f"train.accumulation_steps must be at least 1, got {accumulation_steps}")
        self.device = device
        self.seed = seed
        self.bf16 = bf16
        self.clip_grad_norm = clip_grad_norm
        self.accumulation_steps = accumulation_steps
        self.seconds = 0.0
        self._step_end = 0.0

    def before_train(self) -> None:
        """Start the clock of `seconds`, which counts the whole run, over resumes and with evaluations."""
        self._step_end = time.perf_counter()
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        """detectron2's state and the seconds that the run has taken so far."""
        return {**super().state_dict(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.seconds = state_dict.get("seconds", 0.0)  # the release's files have none
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """One optimizer step on one batch per process."""
        waited_from = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - waited_from
        torch.manual_seed((self.seed * 1_000_003 + self.iter) * 4096 + comm.get_rank())
        images = batch["image"].to(self.device, non_blocking=True)
        labels = batch["label"].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(images, labels)
        self._check(losses)
        if self.clip_grad_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self._check({"gradient_norm": norm.detach()})
        self.optimizer.step()
        now = time.perf_counter()
        # written as they are, not as a running median, so that the curve of a resumed run has no seam
        losses["total_loss"] = sum(losses.values())
        self.storage.put_scalars(**{name: value.item() for name, value in losses.items()}, smoothing_hint=False)
        self.storage.put_scalars(
            data_time=data_time,
            images_per_second=len(images) * comm.get_world_size() / (now - self._step_end),
        )
        self.seconds += now - self._step_end
        self._step_end = now

    def _backward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batch; returns the losses, averaged over all processes."""
        totals: dict[str, Tensor] = {}
        chunks = list(zip(images.chunk(self.accumulation_steps), labels.chunk(self.accumulation_steps), strict=True))
        for i, (image_chunk, label_chunk) in enumerate(chunks):
            last = i + 1 == len(chunks)
            is_ddp = isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if is_ddp and not last else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    losses = self.model(image_chunk, label_chunk)
                share = len(image_chunk) / len(images)
                (sum(losses.values()) * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * share
        return {name: all_reduce_sum(value) / comm.get_world_size() for name, value in totals.items()}

    def _check(self, terms: dict[str, Tensor]) -> None:
        """Stop every process before the optimizer sees a value that is not finite."""
        for name, value in terms.items():
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value.item()} at iteration {self.iter}; the weights were not changed and the last "
                    f"checkpoint is good: resume with a lower optimizer.lr or with train.clip_grad_norm=1.0"
                )
