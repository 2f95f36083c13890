"""Pooling seam of timm's VisionTransformer and Eva: the method `pool`, which `forward_head` calls.

An instance attribute of that name stands in front of the method. Models built with global_pool="avg" may have their
final norm after the pool (`fc_norm`); see `PoolHook` for what is read there.
"""

from torch import Tensor, nn

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    PoolHook,
    check_class_token,
    check_global_token,
    check_image_size,
    has_norm,
    pool_of,
    split_tokens,
)
from last_vit.token_pool import TokenPool

_HOSTS = ("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva")


class TimmViTAdapter:
    """timm `VisionTransformer`, `Eva` and those subclasses that keep their `forward_head`."""

    hosts = "timm VisionTransformer and Eva (vit_*, deit_* but not distilled, deit3_*, eva02_*, ...)"

    def matches(self, model: nn.Module) -> bool:
        """See `Adapter`; a class with its own `forward_head` (distilled DeiT) may not call `pool`, so it is out."""
        owner = next((cls for cls in type(model).__mro__ if "forward_head" in vars(cls)), None)
        return owner is not None and f"{owner.__module__}.{owner.__qualname__}" in _HOSTS

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """See `Adapter`; a ValueError for models with a learned attention pool."""
        if model.attn_pool is not None:
            raise ValueError(
                f"this {type(model).__name__} reads its tokens with a learned pool ({type(model.attn_pool).__name__}, "
                f"global_pool={model.global_pool!r}) and its head was trained for that; build it with "
                f"global_pool='token' or 'avg'"
            )
        check_class_token(model, pool, model.cls_token is not None)
        model.pool = _Pool(pool, model)

    def attached(self, model: nn.Module) -> TokenPool | None:
        """See `Adapter`."""
        return pool_of(model.pool)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """See `Adapter`. All tokens are after `norm` and `fc_norm` (one of them is the identity), as the head reads."""
        if model.patch_embed.img_size is not None and model.patch_embed.strict_img_size:
            check_image_size(model, images, model.patch_embed.img_size)
        # These three calls are timm's public forward, cut where its parts are read.
        tokens = model.forward_features(images)
        global_token = model.forward_head(tokens, pre_logits=True)
        logits = model.get_classifier()(global_token)
        check_global_token(model, global_token, tokens.shape[2])
        height, width = model.patch_embed.dynamic_feat_size(tuple(images.shape[2:]))
        cls_token, patch_tokens = split_tokens(
            model.fc_norm(tokens), model.num_prefix_tokens, model.cls_token is not None, (height, width)
        )
        return DenseOutput(global_token, patch_tokens, (height, width), logits, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        """See `Adapter`."""
        return Blocks(tuple(model.blocks), True, has_norm(model.norm, model.fc_norm))


class _Pool(PoolHook):
    """Stands in for the method `pool`."""

    def __init__(self, pool: TokenPool, model: nn.Module) -> None:
        super().__init__(pool, model.fc_norm)
        self.num_prefix_tokens = model.num_prefix_tokens

    def __call__(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        if pool_type is not None:
            raise ValueError(f"pool_type={pool_type!r} was asked of a model that pools with {self.pool}; leave it out")
        return self.read(x, self.num_prefix_tokens)
