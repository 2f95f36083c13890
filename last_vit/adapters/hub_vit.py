"""Pooling seams of the ViTs that are fetched from hubs: Hugging Face's `transformers`, facebookresearch on torch.hub.

Hosts are known by class name and by the names of their parts. Most read the first token after the final norm: a hook of
that norm puts the pooled token there, where `last_hidden_state[:, 0]`, `pooler_output`, `x_norm_clstoken` and the
classifiers find it. Those of DINOv2 and DINOv3 read that token (of the last four blocks, if they are built so) beside
the mean of the patches, which stays. CLIP norms its class token alone: a hook of the tower norms all tokens and pools
them into `pooler_output`, which `get_image_features` projects. The classifiers on CLIP and SigLIP read the mean of
patches, CLIP's without the norm.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    FirstToken,
    OnePatch,
    check_class_token,
    check_global_token,
    class_names,
    install_hook,
    installed_pool,
    run_around,
    split_tokens,
)
from last_vit.token_pool import TokenPool

_READS = {
    "first": [
        "vit.ViTModel", "vit.ViTForImageClassification", "vit_msn.ViTMSNModel", "vit_msn.ViTMSNForImageClassification",
        "deit.DeiTModel", "deit.DeiTForImageClassification", "deit.DeiTForImageClassificationWithTeacher",
        "vit_mae.ViTMAEModel", "dinov2.Dinov2Model", "dinov2.Dinov2ForImageClassification",
        "dinov2_with_registers.Dinov2WithRegistersModel",
        "dinov2_with_registers.Dinov2WithRegistersForImageClassification", "dinov3_vit.DINOv3ViTModel",
    ],
    "pooler_output": ["clip.CLIPVisionModel", "clip.CLIPVisionModelWithProjection", "clip.CLIPModel"],
    "mean": ["clip.CLIPForImageClassification", "siglip.SiglipForImageClassification"],
    "learned": ["siglip.SiglipVisionModel", "siglip.SiglipModel"],
}  # fmt: skip
HUB_HOSTS = {
    **{
        f"transformers.models.{folder}.modeling_{folder}.{cls}": reads
        for reads, names in _READS.items()
        for folder, cls in (name.split(".") for name in names)
    },
    "vision_transformer.VisionTransformer": "first",
    "dinov2.models.vision_transformer.DinoVisionTransformer": "first",
    "dinov3.models.vision_transformer.DinoVisionTransformer": "first",
    "dinov2.hub.classifiers._LinearClassifierWrapper": "first",
    "dinov3.hub.classifiers._LinearClassifierWrapper": "first",
}
_UNNORMED = "transformers.models.clip.modeling_clip.CLIPForImageClassification"
_NORMS = ("layernorm", "post_layernorm", "norm")
_BLOCKS = ("blocks", "layers", "layer", "encoder.layer", "encoder.layers", "model.layer")  # by class and version


class HubAdapter:
    """Flat ViTs of transformers and facebookresearch, bare, with classifiers, and as image towers of CLIP and SigLIP.

    A ValueError for DINOv3 as torch.hub builds it with separate norms (ViT-7B, ViT-L of SAT-493M).
    """

    hosts = (
        "transformers ViT, ViTMSN, ViTMAE, DeiT, Dinov2, Dinov2WithRegisters, DINOv3ViT and CLIP, as *Model, "
        "*VisionModel and *ForImageClassification (SiglipModel and SiglipVisionModel can be read, not re-pooled)\n"
        "  - facebookresearch dino, dinov2 and dinov3 ViTs as torch.hub builds them, with or without linear classifier"
    )

    def matches(self, model: nn.Module) -> bool:
        return not HUB_HOSTS.keys().isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """A ValueError for SigLIP, which reads its tokens with a learned attention pool."""
        reads, num_prefix_tokens = _reads(model), _num_prefix_tokens(_tower(model))
        if reads == "learned":
            raise ValueError(
                f"this {type(model).__name__} reads its tokens with a learned attention pool, which has no token to "
                f"replace; dense_forward works on it as it is"
            )
        check_class_token(model, pool, num_prefix_tokens > 0)
        hook = {"first": FirstToken, "pooler_output": _PoolerOutput, "mean": _OneOutputPatch}[reads]
        install_hook(_seam(model), hook(pool, num_prefix_tokens))

    def attached(self, model: nn.Module) -> TokenPool | None:
        return installed_pool(_seam(model))

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """Tokens are after the final norm, but for CLIPForImageClassification, which applies none.

        Position embeddings are interpolated to the images as the host does it; ViTMAE sees every patch. The `logits`
        are the classifier's, CLIP's image embedding (not normalised), `pooler_output`, or the global token.
        """
        reads, tower = _reads(model), _tower(model)
        num_prefix_tokens = _num_prefix_tokens(tower)
        own, read, output = run_around(_seam(model), lambda: _run(model, tower, images))
        if reads == "first":
            tokens, global_token = own, read[:, 0]
        elif reads == "mean":
            tokens = own["last_hidden_state"]
            global_token = read["last_hidden_state"][:, num_prefix_tokens:].mean(dim=1)
        else:
            tokens, global_token = own["last_hidden_state"], read["pooler_output"]
            if reads == "pooler_output":
                tokens = _norm(tower)(tokens)
        check_global_token(model, global_token, tokens.shape[2])
        cls_token, patch_tokens = split_tokens(tokens, num_prefix_tokens, num_prefix_tokens > 0, _grid(tower, images))
        return DenseOutput(global_token, patch_tokens, _grid(tower, images), _logits(output, global_token), cls_token)

    def blocks(self, model: nn.Module) -> Blocks:
        tower = _tower(model)
        modules = dict(tower.named_modules())
        found = next(modules[path] for path in _BLOCKS if path in modules)
        # DINOv2's training code keeps blocks in chunks, filled up with identities.
        chunks = [block if isinstance(block, nn.ModuleList) else [block] for block in found]
        blocks = tuple(block for chunk in chunks for block in chunk if not isinstance(block, nn.Identity))
        return Blocks(blocks, True, has_final_norm=_UNNORMED not in class_names(model))


class _PoolerOutput(FirstToken):
    """Hook of CLIP's tower: `pooler_output` [B, D] is the pool of all tokens after the norm of the class token."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        if self.pool.kind == "cls":
            return output
        tokens = _norm(module)(output["last_hidden_state"])
        return type(output)(**{**output, "pooler_output": self.pool(tokens, self.num_prefix_tokens)})


class _OneOutputPatch(OnePatch):
    """Hook of a tower whose `last_hidden_state` a classifier averages."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        tokens = super().__call__(module, args, output["last_hidden_state"])
        return type(output)(**{**output, "last_hidden_state": tokens})


def _reads(model: nn.Module) -> str:
    return next(HUB_HOSTS[name] for name in class_names(model) if name in HUB_HOSTS)


def _tower(model: nn.Module) -> nn.Module:
    """The encoder with its embeddings: in a classifier the backbone, in CLIP and SigLIP the image tower."""
    tower = getattr(model, "backbone", model)
    if not hasattr(tower, "embeddings"):
        tower = getattr(tower, "base_model", tower)
    untied = ("untie_cls_and_patch_norms", "untie_global_and_local_cls_norm")
    if any(getattr(tower, name, False) for name in untied):
        raise ValueError(
            f"this DINOv3 {type(tower).__name__} norms its class token and its patches in separate calls (as ViT-7B "
            f"and the ViT-L of SAT-493M do), which leaves no place to pool; use transformers' DINOv3ViTModel of it"
        )
    return getattr(tower, "vision_model", tower)


def _norm(tower: nn.Module) -> nn.Module:
    return next(getattr(tower, name) for name in _NORMS if hasattr(tower, name))


def _seam(model: nn.Module) -> nn.Module:
    return _norm(_tower(model)) if _reads(model) == "first" else _tower(model)


def _num_prefix_tokens(tower: nn.Module) -> int:
    """Class tokens and registers, which DINOv3 calls storage tokens."""
    special = ("cls_token", "class_embedding", "distillation_token")
    registers = [getattr(_config(tower), name, 0) for name in ("num_register_tokens", "n_storage_tokens")]
    return sum(hasattr(getattr(tower, "embeddings", tower), name) for name in special) + sum(registers)


def _config(tower: nn.Module) -> Any:
    """What holds a host's sizes."""
    return getattr(tower, "config", tower)


def _grid(tower: nn.Module, images: Tensor) -> tuple[int, int]:
    patch_hw = _pair(getattr(_config(tower), "patch_size", None) or tower.patch_embed.patch_size)
    (height, rows_left), (width, columns_left) = map(divmod, images.shape[2:], patch_hw)
    if rows_left or columns_left:
        raise ValueError(
            f"images are {tuple(images.shape[2:])} (height, width), which patches of {patch_hw} do not fill"
        )
    return height, width


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _run(model: nn.Module, tower: nn.Module, images: Tensor) -> Any:
    known = inspect.signature(tower.forward).parameters
    run = getattr(model, "get_image_features", model)
    options: dict[str, Any] = {"return_dict": True} if run is model and hasattr(tower, "config") else {}
    if "interpolate_pos_encoding" in known and tuple(images.shape[2:]) != _pair(tower.config.image_size):
        options["interpolate_pos_encoding"] = True
    if "noise" not in known:
        return run(images, **options)
    height, width = _grid(tower, images)
    order = torch.arange(height * width, device=images.device).expand(len(images), -1)
    mask_ratio, tower.config.mask_ratio = tower.config.mask_ratio, 0.0  # ViTMAE drops patches in eval mode, too
    try:
        return run(images, noise=order, **options)
    finally:
        tower.config.mask_ratio = mask_ratio


def _logits(output: Any, global_token: Tensor) -> Tensor:
    if isinstance(output, Tensor):  # of get_image_features, in older versions
        return output
    return next((output[name] for name in ("logits", "image_embeds", "pooler_output") if name in output), global_token)
