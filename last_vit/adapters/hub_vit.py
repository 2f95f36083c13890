"""Pooling seams of the ViTs that facebookresearch's DINO, DINOv2 and DINOv3 and OpenAI's CLIP publish as code.

As torch.hub or a clone builds them; known by class name, the repositories are not imported. The DINOs read the first
token after `norm`, also in `get_intermediate_layers` and, beside the mean of the patches, in the linear classifiers of
torch.hub: a hook of `norm` puts the pooled token there. OpenAI's tower norms its class token alone. Its tokens, behind
the last block [1 + N, B, D], are handed on as a batch of B * (1 + N) images with one token each, so that `ln_post`
norms all of them; behind it they are a batch of B again, and pooled.
"""

from torch import Tensor, nn

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    FirstToken,
    PoolHook,
    check_image_size,
    class_names,
    install_hook,
    installed_pool,
    run_around,
    split_tokens,
)
from last_vit.token_pool import TokenPool

_DINOS = {
    "vision_transformer.VisionTransformer",
    "dinov2.models.vision_transformer.DinoVisionTransformer",
    "dinov3.models.vision_transformer.DinoVisionTransformer",
}
_LINEAR = {"dinov2.hub.classifiers._LinearClassifierWrapper", "dinov3.hub.classifiers._LinearClassifierWrapper"}
_OPENAI = "clip.model.VisionTransformer"
_OPENAI_CLIP = "clip.model.CLIP"


class DinoAdapter:
    """facebookresearch's DINO, DINOv2 and DINOv3 ViTs and torch.hub's linear classifiers on them.

    A ValueError for DINOv3 models that norm class token and patches apart (ViT-7B, ViT-L of SAT-493M).
    """

    hosts = "facebookresearch dino, dinov2 and dinov3 ViTs as torch.hub builds them, with or without linear classifier"

    def matches(self, model: nn.Module) -> bool:
        """See `Adapter`."""
        return not (_DINOS | _LINEAR).isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """See `Adapter`."""
        tower = _dino(model)
        install_hook(tower.norm, FirstToken(pool, _num_prefix_tokens(tower)))

    def attached(self, model: nn.Module) -> TokenPool | None:
        """See `Adapter`."""
        return installed_pool(_dino(model).norm)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """See `Adapter`. Tokens are after `norm`; position embeddings are the host's, at any size."""
        tower = _dino(model)
        tokens, read, logits = run_around(tower.norm, lambda: model(images))
        patch_size = getattr(tower, "patch_size", tower.patch_embed.patch_size)
        grid_hw = (images.shape[2] // patch_size, images.shape[3] // patch_size)
        cls_token, patch_tokens = split_tokens(tokens, _num_prefix_tokens(tower), True, grid_hw)
        return DenseOutput(read[:, 0], patch_tokens, grid_hw, logits, cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        """See `Adapter`; DINOv2's training code keeps blocks in chunks, filled up with identities."""
        chunks = [block if isinstance(block, nn.ModuleList) else [block] for block in _dino(model).blocks]
        modules = tuple(block for chunk in chunks for block in chunk if not isinstance(block, nn.Identity))
        return Blocks(modules, batch_first=True, has_final_norm=True)


class OpenAIClipAdapter:
    """OpenAI `clip`'s VisionTransformer, alone or in its `CLIP`; a ValueError for its ResNets."""

    hosts = "OpenAI clip's CLIP and VisionTransformer (load with jit=False)"

    def matches(self, model: nn.Module) -> bool:
        """See `Adapter`."""
        return not {_OPENAI, _OPENAI_CLIP}.isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """See `Adapter`."""
        tower = _openai(model)
        install_hook(tower.transformer, _TokensAsImages(pool))
        install_hook(tower.ln_post, _PooledImages(pool, len(tower.positional_embedding)))

    def attached(self, model: nn.Module) -> TokenPool | None:
        """See `Adapter`."""
        return installed_pool(_openai(model).ln_post)

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """See `Adapter`. Tokens are after `ln_post`; `logits` is the image embedding, not normalised."""
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
        """See `Adapter`."""
        return Blocks(tuple(_openai(model).transformer.resblocks), batch_first=False, has_final_norm=True)


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


def _dino(model: nn.Module) -> nn.Module:
    tower = model if _LINEAR.isdisjoint(class_names(model)) else model.backbone
    untied = ("untie_cls_and_patch_norms", "untie_global_and_local_cls_norm")
    if any(getattr(tower, name, False) for name in untied):
        raise ValueError(
            f"this DINOv3 {type(tower).__name__} norms its class token and its patches in separate calls (as ViT-7B "
            f"and the ViT-L of SAT-493M do), which leaves no place to pool; use transformers' DINOv3ViTModel of it"
        )
    return tower


def _num_prefix_tokens(tower: nn.Module) -> int:
    """Class token and registers, which DINOv3 calls storage tokens; older DINOv2 has no such attribute."""
    return 1 + getattr(tower, "num_register_tokens", getattr(tower, "n_storage_tokens", 0))


def _openai(model: nn.Module) -> nn.Module:
    tower = model.visual if _OPENAI_CLIP in class_names(model) else model
    if _OPENAI not in class_names(tower):
        raise ValueError(
            f"OpenAI clip's {type(tower).__name__} pools with a learned attention; supported: its ViTs (ViT-B/32, ...)"
        )
    return tower
