"""Fine-tuning a model that somebody has: its weights, the new input size and head, and its optimizer's groups."""

import logging
from typing import Any

from classification_net import ClassificationNet
from timm.optim import param_groups_layer_decay
from torch import nn

from last_vit.models import parse_model_argument

logger = logging.getLogger("detectron2")


def trained_host(init: str, num_classes: int | None = None, image_size: int | None = None) -> nn.Module:
    """A timm ViT with its trained weights, to be fine-tuned.

    Args:
        init: The model as every command takes it, see `last_vit.models`: `timm:<name>@<file>` or `@pretrained`.
        num_classes: Classes of a new head with fresh weights; None keeps the head that the weights have.
        image_size: Side in pixels of the images to come; position embeddings are resized to its grid (bicubic).
            None keeps the size that the weights have.

    Raises:
        ValueError, FileNotFoundError: As `ModelArgument.load`; a model of another library.
    """
    if not init.startswith("timm:"):
        raise ValueError(f"model.model.init must be a timm model, timm:<name>@<file>, got {init!r}")
    model = parse_model_argument(init).load().model
    if image_size is not None:
        model.set_input_size(img_size=image_size)
    if num_classes is not None:
        logger.info("New head for %d classes in place of the %d of %s", num_classes, model.num_classes, init)
        model.reset_classifier(num_classes)
    return model


def layer_decay_params(
    lr: float, weight_decay: float, layer_decay: float = 1.0, model: ClassificationNet | None = None
) -> list[dict[str, Any]]:
    """Groups of parameters whose learning rate falls by `layer_decay` with every layer below the head (1 is even).

    Biases, norms and embeddings are left out of the weight decay, as timm does. The trainer adds the model.
    """
    groups = param_groups_layer_decay(model.host_model, weight_decay, layer_decay=layer_decay)
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group["lr_scale"]}
        for group in groups
    ]
