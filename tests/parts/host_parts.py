"""Tiny ViT hosts of torchvision, timm and open_clip, for the tests of what reads and re-pools them."""

from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer

TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
TINY_CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}


def tiny_torchvision() -> nn.Module:
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


def tiny_clip() -> nn.Module:
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
    text_cfg = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=6, vision_cfg=vision_cfg, text_cfg=text_cfg)


def late_norm(model: nn.Module) -> nn.Module | None:
    """The norm that stands after a host's pool."""
    norm = model.ln_post if getattr(model, "final_ln_after_pool", False) else getattr(model, "fc_norm", nn.Identity())
    return None if isinstance(norm, nn.Identity) else norm


def shifted(model: nn.Module) -> nn.Module:
    """With a trained norm after the pool: applied twice it would be seen."""
    nn.init.normal_(late_norm(model).weight, 1.0, 0.5)
    nn.init.normal_(late_norm(model).bias)
    return model


def tower_of(model: nn.Module) -> nn.Module:
    return getattr(model, "visual", model)


def first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class Host(NamedTuple):
    build: Callable[[], nn.Module]
    own: str  # the pool that the host comes with
    head: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    has_cls: bool = True


def timm_head(model: nn.Module, token: torch.Tensor) -> torch.Tensor:
    return model.head(token)


def clip_head(model: nn.Module, token: torch.Tensor) -> torch.Tensor:
    return token @ tower_of(model).proj


HOSTS = {
    "torchvision": Host(tiny_torchvision, "cls", lambda model, token: model.heads(token)),
    "timm-vit": Host(lambda: TimmViT(**TINY_TIMM), "cls", timm_head),
    "timm-registers": Host(lambda: TimmViT(**TINY_TIMM, reg_tokens=4), "cls", timm_head),
    "timm-fc-norm": Host(lambda: shifted(TimmViT(**TINY_TIMM, global_pool="avg")), "mean", timm_head),
    "timm-eva-fc-norm": Host(lambda: shifted(Eva(**TINY_TIMM, global_pool="avg")), "mean", timm_head),
    "timm-no-cls": Host(
        lambda: TimmViT(**TINY_TIMM, global_pool="avg", fc_norm=False, class_token=False), "mean", timm_head, False
    ),
    "timm-eva": Host(lambda: Eva(**TINY_TIMM, use_rot_pos_emb=True, global_pool="token"), "cls", timm_head),
    "open_clip": Host(lambda: ClipViT(**TINY_CLIP), "cls", clip_head),
    "open_clip-tokens": Host(lambda: ClipViT(**TINY_CLIP, output_tokens=True), "cls", clip_head),
    "open_clip-ln-after": Host(
        lambda: shifted(ClipViT(**TINY_CLIP, pool_type="avg", final_ln_after_pool=True)), "mean", clip_head
    ),
    "open_clip-CLIP": Host(tiny_clip, "cls", clip_head),
}
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
