"""Pooling seam of open_clip's image towers: the method `_global_pool`, after `ln_post` and before `proj`.

Takes a tower or a whole CLIP (attached to, and read from, its `visual`). Towers from timm (EVA, ViT, ConvNeXt) are
passed on to timm's adapters. With final_ln_after_pool the host pools before `ln_post`; see `PoolHook` for that.

OpenAI's own tower norms its class token alone. Its tokens, behind the last block [1 + N, B, D], are handed on as a
batch of B * (1 + N) images with one token each, so that `ln_post` norms all; behind it they are B again, and pooled.
"""

from torch import Tensor, nn

from last_vit.adapters.base import (
    Adapter,
    Blocks,
    DenseOutput,
    PoolHook,
    check_global_token,
    check_image_size,
    class_names,
    first_output,
    has_norm,
    install_hook,
    installed_pool,
    pool_of,
    run_around,
    split_tokens,
)
from last_vit.adapters.convnet import ConvNetAdapter
from last_vit.adapters.timm_vit import TimmViTAdapter
from last_vit.token_pool import TokenPool

_CLIPS = {"open_clip.model.CLIP", "open_clip.model.CustomTextCLIP", "open_clip.coca_model.CoCa"}
_NATIVE = "open_clip.transformer.VisionTransformer"
_OPENAI, _OPENAI_CLIP = "clip.model.VisionTransformer", "clip.model.CLIP"
_TIMM = "open_clip.timm_model.TimmModel"
_TRUNKS: tuple[Adapter, ...] = (TimmViTAdapter(), ConvNetAdapter())


class OpenClipAdapter:
    """open_clip `VisionTransformer` and `TimmModel` towers, alone or inside `CLIP`, `CustomTextCLIP` or `CoCa`.

    A ValueError for towers with attention pooling, ResNet towers, timm trunks without adapter, and the trunk's own.
    """

    hosts = "open_clip VisionTransformer and TimmModel towers, or CLIP / CustomTextCLIP / CoCa with such a tower"

    def matches(self, model: nn.Module) -> bool:
        return not {_NATIVE, _TIMM, *_CLIPS}.isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        tower = image_tower(model)
        if _TIMM in class_names(tower):
            _trunk_adapter(tower).attach(tower.trunk, pool)
        else:
            tower._global_pool = _GlobalPool(pool, tower.ln_post if tower.final_ln_after_pool else None)

    def attached(self, model: nn.Module) -> TokenPool | None:
        tower = image_tower(model)
        if _TIMM in class_names(tower):
            return _trunk_adapter(tower).attached(tower.trunk)
        return pool_of(tower._global_pool)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """Tokens are [B, N, width] after `ln_post`; `logits` is the image embedding, not normalised."""
        tower = image_tower(model)
        if _TIMM in class_names(tower):
            trunk = _trunk_adapter(tower).dense(tower.trunk, images)
            return trunk._replace(logits=tower.head(trunk.logits))
        check_image_size(tower, images, tower.image_size)
        tokens, pooled, embedding = _run_native(tower, images)
        if tower.final_ln_after_pool:
            tokens, pooled = tower.ln_post(tokens), tower.ln_post(pooled)
        check_global_token(tower, pooled, tokens.shape[2])
        cls_token, patch_tokens = split_tokens(tokens, 1, True, tower.grid_size)
        return DenseOutput(pooled, patch_tokens, tower.grid_size, embedding, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        tower = image_tower(model)
        if _TIMM in class_names(tower):
            return _trunk_adapter(tower).blocks(tower.trunk)
        transformer = tower.transformer
        return Blocks(tuple(transformer.resblocks), transformer.batch_first, has_norm(tower.ln_post))


class OpenAIClipAdapter:
    """OpenAI `clip`'s VisionTransformer, alone or in its `CLIP`; a ValueError for its ResNets."""

    hosts = "OpenAI clip's CLIP and VisionTransformer (load with jit=False)"

    def matches(self, model: nn.Module) -> bool:
        return not {_OPENAI, _OPENAI_CLIP}.isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        tower = _openai(model)
        install_hook(tower.transformer, _TokensAsImages(pool))
        install_hook(tower.ln_post, _PooledImages(pool, len(tower.positional_embedding)))

    def attached(self, model: nn.Module) -> TokenPool | None:
        return installed_pool(_openai(model).ln_post)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """Tokens are after `ln_post`; `logits` is the image embedding, not normalised."""
        tower = _openai(model)
        check_image_size(tower, images, (tower.input_resolution, tower.input_resolution))
        images = images.type(tower.conv1.weight.dtype)  # as encode_image does
        tokens, _, (_, global_token, embedding) = run_around(
            tower.transformer, lambda: run_around(tower.ln_post, lambda: tower(images))
        )
        tokens = tower.ln_post.forward(tokens.transpose(0, 1))  # past the hook
        side = tower.input_resolution // tower.conv1.kernel_size[0]
        cls_token, patch_tokens = split_tokens(tokens, 1, True, (side, side))
        return DenseOutput(global_token, patch_tokens, (side, side), embedding, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        return Blocks(tuple(_openai(model).transformer.resblocks), batch_first=False, has_final_norm=True)


class _GlobalPool(PoolHook):
    """Stands in for the method `_global_pool`: [B, 1 + N, D] -> pooled [B, D] and patch tokens [B, N, D]."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.read(x, 1), x[:, 1:]


class _TokensAsImages(PoolHook):
    """Hook of OpenAI's transformer: [1 + N, B, D] -> [1, B * (1 + N), D], of which the host reads every first token."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if self.pool.kind == "cls" else output.transpose(0, 1).flatten(0, 1)[None]


class _PooledImages(PoolHook):
    """Hook of the norm behind it: [B * (1 + N), D] -> [B, D]."""

    def __init__(self, pool: TokenPool, num_tokens: int) -> None:
        super().__init__(pool)
        self.num_tokens = num_tokens

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if self.pool.kind == "cls" else self.pool(output.unflatten(0, (-1, self.num_tokens)), 1)


def image_tower(model: nn.Module) -> nn.Module:
    """The image tower of a CLIP, or the tower itself; a ValueError unless it pools in one place."""
    tower = model if _CLIPS.isdisjoint(class_names(model)) else model.visual
    names = class_names(tower)
    if _TIMM in names:
        attn_pool = getattr(tower.head, "pool", None)
    elif _NATIVE in names:
        attn_pool = tower.attn_pool
    else:
        raise ValueError(f"open_clip image tower {names[0]} has no adapter; supported: VisionTransformer, TimmModel")
    if attn_pool is not None:
        raise ValueError(
            f"this open_clip tower pools with a learned {type(attn_pool).__name__} (attentional_pool, or timm_pool "
            f"abs_attn / rot_attn), which has no token to replace; use a tower with pool_type 'tok' or 'avg'"
        )
    return tower


def _trunk_adapter(tower: nn.Module) -> Adapter:
    for adapter in _TRUNKS:
        if adapter.matches(tower.trunk):
            return adapter
    raise ValueError(
        f"open_clip tower with timm trunk {class_names(tower.trunk)[0]} has no adapter; supported trunks: "
        f"{'; '.join(adapter.hosts for adapter in _TRUNKS)}"
    )


def _run_native(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass -> what `_global_pool` read [B, 1 + N, D] and pooled [B, D], and the embedding [B, C]."""
    seam, is_own = tower._global_pool, "_global_pool" not in vars(tower)
    seen: list[tuple[Tensor, Tensor]] = []

    def recording(x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, tokens = seam(x)
        seen.append((x, pooled))
        return pooled, tokens

    tower._global_pool = recording
    try:
        embedding = first_output(tower(images))
    finally:
        tower._global_pool = seam
        if is_own:
            del tower._global_pool  # the class's own method shows again
    return *seen[0], embedding


def _openai(model: nn.Module) -> nn.Module:
    tower = model.visual if _OPENAI_CLIP in class_names(model) else model
    if _OPENAI not in class_names(tower):
        raise ValueError(
            f"OpenAI clip's {type(tower).__name__} pools with a learned attention; supported: its ViTs (ViT-B/32, ...)"
        )
    return tower
