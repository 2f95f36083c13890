"""One training step of the detector on detectron2's trainer, such that a run can be resumed bit by bit.

Order and augmentation of the data depend on (seed, position), and what the step itself draws (anchors and regions for
the losses) on (seed, iteration, rank): a checkpoint needs no random state.
"""

import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from last_vit.runtime import all_reduce_sum


class OvTrainer(SimpleTrainer):
    """One step: forward and backward, checked for NaN before the weights are touched.

    Args:
        model: Takes detectron2's list of samples, returns a dict of losses.
        data_loader: Yields such lists.
        optimizer: Over the trainable parameters.
        seed: See above.
        bf16: Forward under bfloat16 autocast.
        clip_grad_norm: Largest L2 norm of the whole gradient; 0 leaves it alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        seed: int = 0,
        bf16: bool = False,
        clip_grad_norm: float = 0.0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.bf16 = bf16
        self.clip_grad_norm = clip_grad_norm
        self.device_type = next(parameter.device.type for parameter in model.parameters())
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
        self.seconds = state_dict["seconds"]
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """One optimizer step on one batch per process."""
        waited_from = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - waited_from
        torch.manual_seed((self.seed * 1_000_003 + self.iter) * 4096 + comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16):
            losses = self.model(batch)
        sum(losses.values()).backward()
        shared = {name: all_reduce_sum(value.detach()) / comm.get_world_size() for name, value in losses.items()}
        self._check(shared)
        if self.clip_grad_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self._check({"gradient_norm": norm.detach()})
        self.optimizer.step()
        now = time.perf_counter()
        # written as they are, not as a running median, so that the curve of a resumed run has no seam
        shared["total_loss"] = sum(shared.values())
        self.storage.put_scalars(**{name: value.item() for name, value in shared.items()}, smoothing_hint=False)
        self.storage.put_scalars(
            data_time=data_time, images_per_second=len(batch) * comm.get_world_size() / (now - self._step_end)
        )
        self.seconds += now - self._step_end
        self._step_end = now

    def _check(self, terms: dict[str, Tensor]) -> None:
        """Stop every process before the optimizer sees a value that is not finite."""
        for name, value in terms.items():
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value.item()} at iteration {self.iter}; the weights were not changed and the last "
                    f"checkpoint is good: resume with a lower optimizer.lr or with train.clip_grad_norm=1.0"
                )
