"""What DINO does between backward and the next forward: clip each gradient, step by the schedules, move the teacher.

The loops over parameters run as torch's foreach operations, a few calls for the whole network; on a GPU nothing here
waits for a value.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer


def cosine_schedule(
    base: float, final: float, epochs: int, iterations_per_epoch: int, warmup_epochs: int = 0
) -> np.ndarray:
    """Linear rise from 0 to `base` in the warm-up, whose last iteration has `base`, then half a cosine to `final`.

    float64 [epochs * iterations_per_epoch]; the warm-up is not longer than the training.
    """
    warmup = np.linspace(0, base, warmup_epochs * iterations_per_epoch)
    remaining = (epochs - warmup_epochs) * iterations_per_epoch
    angle = np.pi * np.arange(remaining) / max(1, remaining)
    return np.concatenate((warmup, final + 0.5 * (base - final) * (1 + np.cos(angle))))


def temperature_schedule(warmup_temp: float, temp: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """The teacher's temperature: linear from `warmup_temp` to `temp`, then constant; float64 [epochs]."""
    return np.concatenate((np.linspace(warmup_temp, temp, warmup_epochs), np.full(epochs - warmup_epochs, temp)))


def parameter_groups(model: nn.Module) -> list[dict]:
    """The trainable parameters in two groups: with the scheduled weight decay, and without any.

    As in DINO position embedding, CLS token and the last layer's `weight_g`, where it is trained, are decayed.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(name: str, groups: list[dict]) -> Optimizer:
    """DINO's "adamw", "sgd" (momentum 0.9) or "lars"; the schedules set learning rate and weight decay."""
    if name == "adamw":
        return AdamW(groups, lr=0.0, fused=True)
    return SGD(groups, lr=0.0, momentum=0.9) if name == "sgd" else Lars(groups)


class Lars(Optimizer):
    """SGD with momentum whose step is scaled per tensor by its norm (You et al., arXiv 1708.03888), as DINO has it.

    Tensors of one dimension get neither weight decay nor scaling. `eta` is the trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    lengths = parameter.norm(), update.norm()
                    trust = group["eta"] * lengths[0] / lengths[1]
                    update = update * torch.where((lengths[0] > 0) & (lengths[1] > 0), trust, 1.0)
                momentum = self.state[parameter].setdefault("mu", torch.zeros_like(parameter))
                momentum.mul_(group["momentum"]).add_(update)
                parameter.add_(momentum, alpha=-group["lr"])


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale every gradient tensor on its own to an L2 norm of at most `max_norm` (not the whole gradient's norm)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    factors = (max_norm / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def drop_last_layer_gradients(model: nn.Module) -> None:
    """Forget the gradients of the head's last layer, so that the optimizer leaves it as it is."""
    for name, parameter in model.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Exponential moving average: teacher = momentum * teacher + (1 - momentum) * student, for every parameter.

    The teacher's buffers (batch norm's statistics) are its own; the student is bare, not its DDP wrapper.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)
