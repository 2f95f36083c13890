"""Fine-tuning a model that somebody has: on labels or on its own logits, with its pixels and its optimizer's groups."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from classification_net import ClassificationNet
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.data.transforms import EvalTransform, TrainTransform
from last_vit.models import parse_model_argument
from last_vit.preprocessing import add_registers

logger = logging.getLogger("detectron2")


class TrainedNet(ClassificationNet):
    """A timm ViT that somebody has trained, to be fine-tuned with another read-out.

    With a `temperature` T it needs no labels: its teacher is the model as it was given, frozen, with the read-out that
    it was trained with. Both see the same pixels, and with p and q the teacher's and the student's softmax at T the
    loss is T^2 KL(p || q), the mean over images (Hinton et al., 2015). The teacher is no submodule: parameters, state
    dict and mode are the student's alone, so a checkpoint is that of any other classifier.

    `init` is the model as every command takes it (`last_vit.models`): `timm:<name>@<file>` or `@pretrained`.
    `num_classes` is that of a new head with fresh weights; None keeps the one that the weights have. `image_size` is
    the side in pixels of the images to come, to which position embeddings are resized; None is that of the weights.
    `num_registers` register tokens are added (Darcet et al., ICLR 2024) to models without any. ValueError for a model
    of another library, no positive temperature, and no head to keep.
    """

    def __init__(
        self,
        init: str,
        num_classes: int | None = None,
        image_size: int | None = None,
        temperature: float | None = None,
        pool: str = "last",
        top_k: int | float = 1,
        sigma: float | None = None,
        variant: str = "release",
        num_registers: int = 0,
    ) -> None:
        if not init.startswith("timm:"):
            raise ValueError(f"model.init must be a timm model, timm:<name>@<file>, got {init!r}")
        host, teacher = parse_model_argument(init).load(image_size).model, None
        if num_classes is None and host.num_classes == 0:
            raise ValueError(f"{init} has no head to keep: give model.num_classes, and images with labels")
        if temperature is not None:
            if not temperature > 0 or num_classes is not None:
                raise ValueError(
                    f"a model learns its own logits with its own head and a model.temperature above 0, got "
                    f"temperature {temperature} and num_classes {num_classes}"
                )
            teacher = copy.deepcopy(host).requires_grad_(False)
        if num_classes is not None:
            logger.info("New head for %d classes in place of the %d of %s", num_classes, host.num_classes, init)
            host.reset_classifier(num_classes)
        if num_registers and (num_registers < 0 or getattr(host, "reg_token", 0) is not None or host.cls_token is None):
            raise ValueError(f"model.num_registers={num_registers} is for a ViT with a class token and no registers")
        if num_registers:
            add_registers(host, num_registers)
        super().__init__(host, pool, top_k, sigma, variant)
        self.temperature = temperature
        self._unregistered = (teacher,)

    @property
    def teacher(self) -> nn.Module | None:
        """Images [B, 3, H, W] -> logits [B, C], in eval mode."""
        return self._unregistered[0]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """As `ClassificationNet`; with a teacher labels [B] only ask for the loss, their values are not read."""
        if labels is None or self.teacher is None:
            return super().forward(images, labels)
        with torch.no_grad():
            target = self.teacher(images)
        target, logits = ((each.float() / self.temperature).log_softmax(1) for each in (target, self.model(images)))
        loss = F.kl_div(logits, target, reduction="batchmean", log_target=True)
        return {"loss_kl": self.temperature**2 * loss}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrainedNet":
        """The teacher follows to another device or dtype."""
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)


def own_transform(
    init: str, size: int | None = None, resize: int | None = None, train_scale: Sequence[float] | None = None
) -> EvalTransform | TrainTransform:
    """The pixels that a model was trained with: its mean, std and interpolation.

    `init` and `size` are those of a `TrainedNet`. The shorter side is resized to `resize`, by default the model's own
    ratio to the size; with `train_scale` it is the training transform, whose `scale` that is.
    """
    own = parse_model_argument(init).load(size, resize).preprocessing
    if train_scale is None:
        return EvalTransform(**asdict(own))
    return TrainTransform(own.crop, own.mean, own.std, train_scale, own.interpolation)


def layer_decay_params(
    lr: float, weight_decay: float, layer_decay: float = 1.0, model: ClassificationNet | None = None
) -> list[dict[str, Any]]:
    """Groups of parameters whose learning rate falls by `layer_decay` with every layer below the head (1 is even).

    Biases and norms are left out of the weight decay. The trainer adds the model.
    """
    groups = param_groups_layer_decay(model.host_model, weight_decay, layer_decay=layer_decay)
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group["lr_scale"]}
        for group in groups
    ]
