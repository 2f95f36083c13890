"""Backbones of DINO by the names of its flag --arch, without classifier, and with the pooling they are trained with."""

from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from last_vit.dense import attach_pool, pooling_of
from last_vit.dino_vit import DINO_VITS, DinoVisionTransformer, build_dino_vit


def build_backbone(
    arch: str, patch_size: int = 16, img_size: int = 224, drop_path_rate: float = 0.0
) -> tuple[nn.Module, int]:
    """A backbone with fresh weights, in training mode, that maps images [B, 3, H, W] to tokens [B, D]; and D.

    `arch` is `vit_mini`, `vit_tiny`, `vit_small`, `vit_base` (also as `deit_*`); `xcit_*` as in facebookresearch/xcit,
    from timm under its keys; or a torchvision ConvNet with a classifier called `fc` (ResNet and its kin). `patch_size`
    and `img_size`, the side in pixels that a position embedding is made for, are a ViT's; ConvNets have no drop path.
    """
    name = arch.replace("deit", "vit")
    if name in DINO_VITS:
        backbone = build_dino_vit(name, patch_size, img_size, drop_path_rate)
        return backbone, backbone.embed_dim
    if name.startswith("xcit_"):
        known = [model.removesuffix("_224") for model in timm.list_models("xcit_*_224")]
        if name not in known:
            raise ValueError(f"--arch {name!r} is none of timm's XCiT models: {', '.join(known)}")
        backbone = timm.create_model(f"{name}_224", pretrained=False, num_classes=0, drop_path_rate=drop_path_rate)
        return backbone, backbone.num_features
    if name in torchvision.models.list_models(module=torchvision.models):
        backbone = torchvision.models.get_model(name, weights=None)
        if isinstance(getattr(backbone, "fc", None), nn.Linear):
            embed_dim, backbone.fc = backbone.fc.in_features, nn.Identity()
            return backbone, embed_dim
    raise ValueError(
        f"--arch {arch!r} is not supported: {', '.join(DINO_VITS)} (or deit_*), an xcit_* of facebookresearch/xcit "
        f"such as xcit_small_12_p16, or a torchvision ConvNet whose classifier is called fc, such as resnet50"
    )


def attach_pooling(
    backbone: nn.Module, pooling: str, top_k: int | float | None, variant: str, crop_sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Pool a backbone's tokens with "cls", "mean" or "last" from now on; before it is compiled.

    "cls" is DINO's own read-out: the class token of a ViT, and of anything else what the host pools with. Returns what
    the checkpoint records, as `pooling_of` gives it; ValueError for a host that cannot be pooled so, or more patches
    than the smallest of `crop_sizes` (pixels) has.
    """
    if pooling == "cls" and not isinstance(backbone, DinoVisionTransformer):
        return {"pool": "host"}
    attach_pool(backbone, pooling, top_k=top_k, variant=variant)
    if isinstance(top_k, int):
        _check_top_k(backbone, crop_sizes)
    return pooling_of(backbone)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model keeps running statistics, which DINO then shares between processes and names `module.*`."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@torch.no_grad()
def _check_top_k(backbone: nn.Module, crop_sizes: tuple[int, ...]) -> None:
    """Pool a crop of every size, before training meets the first small one."""
    backbone.eval()
    try:
        for size in crop_sizes:
            backbone(torch.zeros(1, 3, size, size))
    except ValueError as error:
        raise ValueError(f"--top_k does not fit crops of {size} pixels: {error}") from error
    backbone.train()
