"""Pooling seam of torchvision's VisionTransformer: the output of `encoder`.

The host reads `encoder(x)[:, 0]`. A forward hook on the encoder returns the pooled token as a sequence of length one,
so that same line reads it.
"""

from torch import Tensor, nn

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    PoolHook,
    check_image_size,
    class_names,
    has_norm,
    install_hook,
    installed_pool,
    run_around,
    split_tokens,
)
from last_vit.token_pool import TokenPool

_HOST = "torchvision.models.vision_transformer.VisionTransformer"


class TorchvisionViTAdapter:
    """torchvision `VisionTransformer` and its subclasses: one class token, fixed square images."""

    hosts = "torchvision VisionTransformer (vit_b_16, ...)"

    def matches(self, model: nn.Module) -> bool:
        return _HOST in class_names(model)

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        install_hook(model.encoder, _PooledSequence(pool))

    def attached(self, model: nn.Module) -> TokenPool | None:
        return installed_pool(model.encoder)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """Tokens are the encoder's output (after its norm), the global token is what `heads` reads."""
        check_image_size(model, images, (model.image_size, model.image_size))
        tokens, read, logits = run_around(model.encoder, lambda: model(images))
        side = model.image_size // model.patch_size
        cls_token, patch_tokens = split_tokens(tokens, 1, True, (side, side))
        return DenseOutput(read[:, 0], patch_tokens, (side, side), logits, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        return Blocks(tuple(model.encoder.layers), True, has_norm(model.encoder.ln))


def check_host(model: nn.Module, change: str) -> None:
    """Raise a ValueError for a `change` to the inside of anything but torchvision's VisionTransformer itself.

    Nor a wrapper of it: a graph that was compiled before would go on without the change.
    """
    if _HOST not in class_names(model):
        raise ValueError(
            f"{change} can be added to torchvision's VisionTransformer only, got {type(model).__name__}; add before "
            f"wrapping or compiling the model"
        )


class _PooledSequence(PoolHook):
    """[B, 1 + N, D] encoder output -> [B, 1, D]."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> Tensor:
        return self.pool(output, 1)[:, None]
