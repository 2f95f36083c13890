"""One step of DINO: forward of both networks, backward, optimizer, teacher and centre; and the watch over the loss."""

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from dino_head import MultiCrop
from dino_loss import NUM_TEACHER_VIEWS, DinoLoss
from dino_optimizers import clip_each_gradient, drop_last_layer_gradients, move_teacher
from torch import Tensor

from last_vit.runtime import all_reduce_sum, rank, world_size
from last_vit.train_lib import LateScalars, average_gradients, micro_batches, require_finite, seed_step


@dataclass(frozen=True)
class Schedules:
    """Values by iteration (temperature: by epoch); see dino_optimizers.py."""

    lr: np.ndarray
    weight_decay: np.ndarray
    teacher_momentum: np.ndarray
    teacher_temp: np.ndarray


@dataclass(eq=False)
class DinoStep:
    """Everything that one step needs and changes; call it with a batch.

    It repeats bit by bit, and is looked at one step late, as `last_vit.train_lib` says; `check` must be called before
    anything is saved.

    Attributes:
        student: Trained by `optimizer`; gradients are averaged over processes.
        teacher: Follows the student; needs no gradient.
        loss: Holds the centre.
        optimizer: Over `parameter_groups` of the student; the first group's weight decay is scheduled.
        schedules: Of the whole training.
        clip_grad: Largest norm of each gradient tensor; 0 for no limit.
        freeze_last_layer: Epochs in which the last layer stays as it is.
        dtype: torch.float16 or bfloat16 for autocast, float32 for none. float16 scales the loss.
        accumulation_steps: Parts that a batch is split into.
        seed: Of what the steps draw.
    """

    student: MultiCrop
    teacher: MultiCrop
    loss: DinoLoss
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    clip_grad: float = 3.0
    freeze_last_layer: int = 1
    dtype: torch.dtype = torch.float32
    accumulation_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)
        self.scaler = torch.amp.GradScaler(enabled=True) if self.dtype == torch.float16 else None
        self._last: tuple[str, LateScalars, LateScalars] | None = None
        self._shared = average_gradients(self.student)

    def __call__(self, crops: Sequence[Tensor], epoch: int, iteration: int) -> Mapping[str, float]:
        """One optimizer step.

        Args:
            crops: The views of this process's batch, each [B, 3, side, side] on the networks' device, global ones
                first.
            epoch: From 0.
            iteration: From 0, over all epochs.

        Returns:
            "loss", "loss_global" (pairs of two global views), "loss_local" (if there are local ones), means over all
            processes; "lr" and "wd". A look at a loss waits for the device: look at it one step later.

        Raises:
            FloatingPointError: As `check`, for the step before; weights and centre are lost, files are not.
        """
        seed_step(self.seed, iteration)
        lr, weight_decay = float(self.schedules.lr[iteration]), float(self.schedules.weight_decay[iteration])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.param_groups[0]["weight_decay"] = weight_decay
        self.optimizer.zero_grad(set_to_none=True)
        losses, sums, teacher_sum = self._backward(crops, epoch)
        self._update(epoch, iteration)
        self.loss.update_center(teacher_sum, NUM_TEACHER_VIEWS * len(crops[0]))
        self.check()
        self._last = f"at epoch {epoch}, iteration {iteration}", losses, sums
        return ChainMap({"lr": lr, "wd": weight_decay}, losses)

    def check(self) -> None:
        """Look at the last step's loss, waiting for it; FloatingPointError where it is not finite."""
        if self._last is None:
            return
        where, losses, sums = self._last
        if not math.isfinite(losses["loss"]):
            faulty = [name for name, value in sums.items() if not math.isfinite(value)]
            where += f"; not finite in process {rank()}: {', '.join(faulty) or 'none of its logits'}"
        require_finite(
            losses,
            where,
            "the last checkpoint is good: run again to resume from it, with --bf16 true or --use_fp16 false, a lower "
            "--lr or a smaller --clip_grad",
        )

    def _backward(self, crops: Sequence[Tensor], epoch: int) -> tuple[LateScalars, LateScalars, Tensor]:
        """Gradients of the batch's mean loss.

        Returns:
            The losses over all processes; sums over this process's logits and centre, by their names, which are not
            finite if one value is not; and the sum of the teacher's logits, [1, C].
        """
        temp = float(self.schedules.teacher_temp[epoch])
        device = crops[0].device
        totals, teacher_sum = torch.zeros(3, device=device), torch.zeros_like(self.loss.center)
        student_sum = torch.zeros((), device=device)
        for part, share in micro_batches(self._shared, self.accumulation_steps, crops):
            with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                with torch.no_grad():
                    teacher_logits = self.teacher(part[:NUM_TEACHER_VIEWS])
                student_logits = self._shared(part)
            terms = self.loss(student_logits, teacher_logits, temp)
            scaled = terms.loss * share
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            local = terms.global_pairs if terms.local_pairs is None else terms.local_pairs
            totals += torch.stack((terms.loss.detach(), terms.global_pairs, local)) * share
            teacher_sum += teacher_logits.float().sum(dim=0, keepdim=True)
            student_sum += student_logits.detach().sum(dtype=torch.float32)
        names = ("loss", "loss_global") if terms.local_pairs is None else ("loss", "loss_global", "loss_local")
        means = all_reduce_sum(totals)[: len(names)] / world_size()
        sums = torch.stack((student_sum, teacher_sum.sum(), self.loss.center.sum()))
        return LateScalars(names, means), LateScalars(("student logits", "teacher logits", "centre"), sums), teacher_sum

    def _update(self, epoch: int, iteration: int) -> None:
        """Clip, step, move the teacher."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_grad > 0:
            clip_each_gradient(self.student.parameters(), self.clip_grad)
        if epoch < self.freeze_last_layer:
            drop_last_layer_gradients(self.student)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        move_teacher(self.teacher, self.student, float(self.schedules.teacher_momentum[iteration]))
