"""Pooling seams of timm's ViTs with flat tokens: the method `pool`, or the tokens that `norm` hands to `forward_head`.

VisionTransformer and Eva pool in a method `pool`, NaFlexVit in `_pool`: an instance attribute of that name stands in
front of it. Beit, relative-position ViTs and distilled DeiT read the first token, or the mean of patches, behind
`norm`: a hook of it puts the pooled token there (DeiT's distillation token stays). Models built with global_pool="avg"
may have their final norm after the pool (`fc_norm`); see `PoolHook` for what is read there.
"""

from torch import Tensor, nn

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    FirstToken,
    OnePatch,
    PoolHook,
    check_class_token,
    check_global_token,
    check_image_size,
    first_output,
    has_norm,
    install_hook,
    installed_pool,
    pool_of,
    run_around,
    split_tokens,
)
from last_vit.token_pool import TokenPool

_SEAMS = {
    "timm.models.vision_transformer.VisionTransformer": "pool",
    "timm.models.eva.Eva": "pool",
    "timm.models.naflexvit.NaFlexVit": "_pool",
    "timm.models.beit.Beit": "norm",
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos": "norm",
    "timm.models.deit.VisionTransformerDistilled": "norm",
}


class TimmViTAdapter:
    """timm's ViTs of `_SEAMS` and those subclasses that keep their `forward_head`."""

    hosts = (
        "timm VisionTransformer, Eva, Beit, NaFlexVit, VisionTransformerRelPos and VisionTransformerDistilled (vit_*, "
        "deit*, eva02_*, beit*, naflexvit_*, ...)"
    )

    def matches(self, model: nn.Module) -> bool:
        """A subclass with its own `forward_head` may read its tokens anywhere, so it is out."""
        return _seam(model) is not None

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """A ValueError for models with a learned attention pool."""
        if getattr(model, "attn_pool", None) is not None:
            raise ValueError(
                f"this {type(model).__name__} reads its tokens with a learned pool ({type(model.attn_pool).__name__}, "
                f"global_pool={model.global_pool!r}) and its head was trained for that; build it with "
                f"global_pool='token' or 'avg'"
            )
        check_class_token(model, pool, _embed(model).cls_token is not None)
        seam = _seam(model)
        if seam == "norm":
            hook = OnePatch if model.global_pool == "avg" else FirstToken
            install_hook(model.norm, hook(pool, model.num_prefix_tokens, model.fc_norm))
        else:
            setattr(model, seam, _Pool(pool, model))

    def attached(self, model: nn.Module) -> TokenPool | None:
        seam = _seam(model)
        return installed_pool(model.norm) if seam == "norm" else pool_of(getattr(model, seam))

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """All tokens are after `norm` and `fc_norm` (one of them is the identity), as the head reads."""
        embed = getattr(model, "embeds", None) or model.patch_embed  # NaFlexVit's takes any size
        if getattr(embed, "img_size", None) is not None and embed.strict_img_size:
            check_image_size(model, images, embed.img_size)
        if _seam(model) == "norm":
            tokens, read, logits = run_around(model.norm, lambda: first_output(model(images)))
            read = read[:, model.num_prefix_tokens :].mean(dim=1) if model.global_pool == "avg" else read[:, 0]
            global_token = model.fc_norm(read)
        else:  # timm's public forward, cut where its parts are read
            tokens = model.forward_features(images)
            global_token = model.forward_head(tokens, pre_logits=True)
            logits = model.get_classifier()(global_token)
        check_global_token(model, global_token, tokens.shape[2])
        grid_hw = embed.dynamic_feat_size(tuple(images.shape[2:]))
        cls_token, patch_tokens = split_tokens(
            model.fc_norm(tokens), model.num_prefix_tokens, _embed(model).cls_token is not None, grid_hw
        )
        return DenseOutput(global_token, patch_tokens, grid_hw, logits, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        return Blocks(tuple(model.blocks), True, has_norm(model.norm, model.fc_norm))


def _seam(model: nn.Module) -> str | None:
    owner = next((cls for cls in type(model).__mro__ if "forward_head" in vars(cls)), None)
    return None if owner is None else _SEAMS.get(f"{owner.__module__}.{owner.__qualname__}")


def _embed(model: nn.Module) -> nn.Module:
    """What holds the class token."""
    return getattr(model, "embeds", model)


class _Pool(PoolHook):
    """Stands in for the methods `pool` and `_pool`."""

    def __init__(self, pool: TokenPool, model: nn.Module) -> None:
        super().__init__(pool, model.fc_norm)
        self.num_prefix_tokens = model.num_prefix_tokens

    def __call__(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        if pool_type is not None:
            raise ValueError(f"pool_type={pool_type!r} was asked of a model that pools with {self.pool}; leave it out")
        if patch_valid is not None and not patch_valid.all():
            raise ValueError("images of different sizes are padded to one number of patches; pool those of one size")
        return self.read(x, self.num_prefix_tokens)
