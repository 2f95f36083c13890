"""One training step on detectron2's trainer, such that a run can be resumed bit by bit.

Order and augmentation of the data depend on (seed, position), and what the step itself draws (dropout, drop path,
sampled regions) on (seed, iteration, rank), so a checkpoint needs no random state. Does not import detectron2: a
track's trainer takes its loop, hooks and event storage from `SimpleTrainer`, named behind this class.

Nothing here waits for the device, which computes while Python starts the next step. So a loss is looked at one step
late, but always before hooks log, evaluate or save: what is not finite never reaches a file.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.late_scalars import LateScalars
from last_vit.runtime import all_reduce_sum, rank, world_size

_NORM = "gradient_norm"


class RepeatableSteps:
    """The step of `class OwnTrainer(RepeatableSteps, SimpleTrainer)`, which says in `backward` what a batch is.

    Args:
        model: In training mode from here on.
        data_loader: Yields batches as `backward` takes them.
        optimizer: Over the parameters that are trained.
        seed: Seeds every step together with its iteration and rank.
        bf16: What `autocast` does.
        clip_grad_norm: Largest L2 norm of the whole gradient; 0 leaves it alone.

    Attributes:
        device: The model's.
        seconds: What the run has taken so far, over resumes and with evaluations.
        read_periods: A step that ends one of these periods (0 is none) is waited for, because hooks look at its losses
            or weights; by default every step.
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
        self.device = next(model.parameters()).device
        self.seed = seed
        self.bf16 = bf16
        self.clip_grad_norm = clip_grad_norm
        self.seconds = 0.0
        self.read_periods: Sequence[int] = (1,)
        self._last: tuple[int, LateScalars] | None = None
        self._step_end = 0.0

    def backward(self, batch: Any) -> tuple[dict[str, Tensor], int]:
        """Add this process's gradients of the summed losses -> the losses, detached scalars, and the images in them."""
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """bfloat16 autocast for the forward pass, where the run is in bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def before_train(self) -> None:
        """Start the clock of `seconds`."""
        self._step_end = time.perf_counter()
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        """detectron2's state and `seconds`."""
        return {**super().state_dict(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.seconds = state_dict.get("seconds", 0.0)  # detectron2's own files have none
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """One optimizer step on one batch per process."""
        waited_from = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - waited_from
        torch.manual_seed((self.seed * 1_000_003 + self.iter) * 4096 + rank())
        self.optimizer.zero_grad(set_to_none=True)
        own, num_images = self.backward(batch)
        # all losses in one message between processes
        values = all_reduce_sum(torch.stack([value.float() for value in own.values()])) / world_size()
        names = tuple(own)
        if self.clip_grad_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            names, values = (*names, _NORM), torch.cat((values, norm.detach().float()[None]))
        self.optimizer.step()
        self.read_losses()  # of the step before
        self._last = self.iter, LateScalars(names, values)
        now = time.perf_counter()
        self.storage.put_scalars(
            data_time=data_time, images_per_second=num_images * world_size() / (now - self._step_end)
        )
        self.seconds += now - self._step_end
        self._step_end = now

    def after_step(self) -> None:
        """Hooks, which find the losses of this step where they look at them."""
        done = self.iter + 1
        if done == self.max_iter or any(period > 0 and done % period == 0 for period in self.read_periods):
            self.read_losses()
        super().after_step()

    def read_losses(self) -> None:
        """Check and store the losses of the last step that was not read yet; waits for that step.

        Raises:
            FloatingPointError: One is not finite, or the gradient's norm; in every process alike.
        """
        if self._last is None:
            return
        (iteration, values), self._last = self._last, None
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at iteration {iteration}; nothing of it was saved and the last checkpoint is "
                    f"good: resume with a lower optimizer.lr or with train.clip_grad_norm=1.0"
                )
        losses = {name: value for name, value in values.items() if name != _NORM}
        # written as they are, not as a running median, so that the curve of a resumed run has no seam
        self.storage.put_scalars(**losses, total_loss=sum(losses.values()), smoothing_hint=False, cur_iter=iteration)
