"""One step of DINO: forward of both networks, backward, optimizer, teacher and centre; and the watch over the loss."""

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dino_head import MultiCrop
from dino_loss import NUM_TEACHER_VIEWS, DinoLoss
from dino_optimizers import clip_each_gradient, drop_last_layer_gradients, move_teacher
from torch import Tensor
from torch.nn import functional as F

from last_vit.late_scalars import LateScalars
from last_vit.runtime import all_reduce_sum, rank, world_size
from last_vit.train_lib import average_gradients, micro_batches, require_finite, seed_step, way_on


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
    """

    student: MultiCrop  # trained by `optimizer`; gradients are averaged over processes
    teacher: MultiCrop  # follows the student; needs no gradient
    loss: DinoLoss  # holds the centre
    optimizer: torch.optim.Optimizer  # over `parameter_groups` of the student; the first's weight decay is scheduled
    schedules: Schedules  # of the whole training
    clip_grad: float = 3.0  # largest norm of each gradient tensor; 0 for no limit
    freeze_last_layer: int = 1  # epochs in which the last layer stays as it is
    dtype: torch.dtype = torch.float32  # of autocast, float32 for none; float16 scales the loss
    accumulation_steps: int = 1  # parts that a batch is split into
    seed: int = 0  # of what the steps draw
    checkpoint: Path | None = None  # the run's file, named when a loss is not finite

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)
        self.scaler = torch.amp.GradScaler(enabled=True) if self.dtype == torch.float16 else None
        self._last: tuple[str, LateScalars, LateScalars] | None = None
        self._shared = average_gradients(self.student)

    def __call__(self, crops: Sequence[Tensor], epoch: int, iteration: int) -> Mapping[str, float]:
        """One optimizer step.

        Crops are the views of this process's batch, each [B, 3, side, side] on the networks' device, global ones first;
        `epoch` and `iteration` (over all epochs) count from 0. Returns "loss", "loss_global" (pairs of two global
        views), "loss_local" (if there are local ones) and "teacher_entropy", means over all processes;
        "feature_spread", how far the teacher's global tokens of the batch differ, 0 for all the same to 1; "lr" and
        "wd". A look waits for the device: do it one step later. FloatingPointError as `check`, for the step before;
        weights and centre are lost, files are not.
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
        precision = {torch.float16: ", with --bf16 true or --use_fp16 false", torch.bfloat16: ", with --bf16 false"}
        advice = f"a lower --lr or a smaller --clip_grad{precision.get(self.dtype, '')}"
        require_finite(losses, where, way_on(self.checkpoint, advice))

    def _backward(self, crops: Sequence[Tensor], epoch: int) -> tuple[LateScalars, LateScalars, Tensor]:
        """Gradients of the batch's mean loss.

        Returns the losses over all processes; sums over this process's logits and centre, which are not finite if one
        value is not; and the sum of the teacher's logits, [1, C].
        """
        temp, device = float(self.schedules.teacher_temp[epoch]), crops[0].device
        totals, teacher_sum = torch.zeros(4, device=device), torch.zeros_like(self.loss.center)
        token_means: Tensor | float = 0.0  # [2, D], of the teacher's tokens of length 1
        student_sum = torch.zeros((), device=device)
        for part, share in micro_batches(self._shared, self.accumulation_steps, crops):
            with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                with torch.no_grad():
                    tokens = self.teacher.tokens(part[:NUM_TEACHER_VIEWS])
                    teacher_logits = self.teacher.head(tokens)
                student_logits = self._shared(part)
            terms = self.loss(student_logits, teacher_logits, temp)
            scaled = terms.loss * share
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            local = terms.global_pairs if terms.local_pairs is None else terms.local_pairs
            totals += torch.stack((terms.loss.detach(), terms.global_pairs, local, terms.teacher_entropy)) * share
            views = F.normalize(tokens.float(), dim=-1).unflatten(0, (NUM_TEACHER_VIEWS, -1))
            token_means = token_means + views.mean(dim=1) * share
            teacher_sum += teacher_logits.float().sum(dim=0, keepdim=True)
            student_sum += student_logits.detach().sum(dtype=torch.float32)
        # all in one message between processes
        means = all_reduce_sum(torch.cat((totals, token_means.flatten()))) / world_size()
        # sqrt of D times the tokens' variance over the batch: 1 - |mean|^2 for tokens of length 1
        square = means[len(totals) :].unflatten(0, (NUM_TEACHER_VIEWS, -1)).square().sum(dim=-1).mean()
        spread = (1 - square).clamp(min=0).sqrt()
        pairs = ("loss", "loss_global") if terms.local_pairs is None else ("loss", "loss_global", "loss_local")
        names, means = (*pairs, "teacher_entropy", "feature_spread"), [*means[: len(pairs)], means[3], spread]
        sums = torch.stack((student_sum, teacher_sum.sum(), self.loss.center.sum()))
        return (
            LateScalars(names, torch.stack(means)),
            LateScalars(("student logits", "teacher logits", "centre"), sums),
            teacher_sum,
        )

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
