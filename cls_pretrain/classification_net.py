"""The classifier that cls_pretrain trains: any host model with a chosen read-out, and its cross-entropy.

The host sits under `.model`, so that a state dict carries the prefix "model." exactly as the released weights do.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from vit_ablations import add_register_tokens, add_window_attention

from last_vit.checkpoint import find_classifier
from last_vit.dense import attach_pool, pooling_of

HOST_POOL = "host"


class ClassificationNet(nn.Module):
    """A host classifier whose global token is pooled as asked.

    The host is any that `attach_pool` supports, with its classification head; `pool` is one of `names.POOLS`, or "host"
    to leave the read-out as the host has it (ConvNets). To a torchvision ViT `num_registers` register tokens can be
    added, and at `window_layers`, blocks counted from 0, patches attend within windows of `window_size` patches a side.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: str = "last",
        top_k: int | float = 1,
        sigma: float | None = None,
        variant: str = "release",
        num_registers: int = 0,
        window_layers: Sequence[int] = (),
        window_size: int = 4,
    ) -> None:
        super().__init__()
        if num_registers != 0:
            model = add_register_tokens(model, num_registers)
        if window_layers not in ((), []):
            model = add_window_attention(model, window_layers, window_size)
        self.model = model if pool == HOST_POOL else attach_pool(model, pool, top_k, sigma, variant)

    teacher: nn.Module | None = None  # whose logits stand in place of labels

    @property
    def host_model(self) -> nn.Module:
        """The host, for adapters that look through wrappers."""
        return self.model

    @property
    def num_classes(self) -> int | None:
        """Of the host's head; None where it has none that is known."""
        weights = self.model.state_dict()
        classifier = find_classifier(weights)
        return None if classifier is None else len(weights[classifier])

    @property
    def pooling(self) -> dict:
        """What the model is trained with, as checkpoints and results record it."""
        return pooling_of(self.model)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Images [B, 3, H, W], normalised -> logits [B, C], or with labels [B] the mean cross-entropy in float32."""
        logits = self.model(images)
        if labels is None:
            return logits
        return {"loss_ce": F.cross_entropy(logits.float(), labels)}
