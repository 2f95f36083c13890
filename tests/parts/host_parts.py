"""Tiny ViT hosts of every library, for the tests of what reads and re-pools them."""

from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
import transformers as hf
from hub_parts import HUB, TIMM, TRANSFORMERS
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models import VisionTransformer

TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
TINY_CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}


def tiny_torchvision() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)


def tiny_clip() -> nn.Module:
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
    text_cfg = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=6, vision_cfg=vision_cfg, text_cfg=text_cfg)


def late_norm(model: nn.Module) -> nn.Module | None:
    """The norm that stands after a host's pool."""
    norm = model.ln_post if getattr(model, "final_ln_after_pool", False) else getattr(model, "fc_norm", nn.Identity())
    return None if isinstance(norm, nn.Identity) else norm


class Host(NamedTuple):
    build: Callable[[], nn.Module]
    own: str | None  # the pool that the host comes with; None for a learned one, which is to be read only
    head: Callable[[nn.Module, Tensor], Tensor] | None = None  # from the global token to the output, where it is a call
    has_cls: bool = True


def timm_head(model: nn.Module, token: Tensor) -> Tensor:
    return model.head(token)


def clip_head(model: nn.Module, token: Tensor) -> Tensor:
    return token @ getattr(model, "visual", model).proj


NATIVE = {
    "torchvision": Host(tiny_torchvision, "cls", lambda model, token: model.heads(token)),
    "timm-vit": Host(lambda: TimmViT(**TINY_TIMM), "cls", timm_head),
    "timm-registers": Host(lambda: TimmViT(**TINY_TIMM, reg_tokens=4), "cls", timm_head),
    "timm-fc-norm": Host(lambda: TimmViT(**TINY_TIMM, global_pool="avg"), "mean", timm_head),
    "timm-eva-fc-norm": Host(lambda: Eva(**TINY_TIMM, global_pool="avg"), "mean", timm_head),
    "timm-no-cls": Host(
        lambda: TimmViT(**TINY_TIMM, global_pool="avg", fc_norm=False, class_token=False), "mean", timm_head, False
    ),
    "timm-eva": Host(lambda: Eva(**TINY_TIMM, use_rot_pos_emb=True, global_pool="token"), "cls", timm_head),
    "open_clip": Host(lambda: ClipViT(**TINY_CLIP), "cls", clip_head),
    "open_clip-tokens": Host(lambda: ClipViT(**TINY_CLIP, output_tokens=True), "cls", clip_head),
    "open_clip-ln-after": Host(
        lambda: ClipViT(**TINY_CLIP, pool_type="avg", final_ln_after_pool=True), "mean", clip_head
    ),
    "open_clip-CLIP": Host(tiny_clip, "cls", clip_head),
}
FIXED = (*NATIVE, "clip", "clip-tower", "beit", "relpos", "relpos-token", "deit-distilled")  # of one size of images
_MEAN = ("CLIPForImageClassification", "SiglipForImageClassification", "relpos", "naflex-gap")
_LEARNED = ("SiglipVisionModel", "SiglipModel")
_WITHOUT_CLS = (*_LEARNED, "SiglipForImageClassification", "relpos", "naflex-gap")
HOSTS = NATIVE | {
    name: Host(build, None if name in _LEARNED else "mean" if name in _MEAN else "cls", None, name not in _WITHOUT_CLS)
    for name, build in (TIMM | TRANSFORMERS | HUB).items()
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build_host(name: str) -> nn.Module:
    """Its tokens, norms and head far from their initial values."""
    model = HOSTS[name].build().eval()
    for key, weight in model.named_parameters():
        if any(part in key for part in ("norm", "ln_", "token", "embedding", "head.")):
            nn.init.normal_(weight)
    return model


def own_output(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    """What a user of the host reads."""
    if hasattr(model, "get_image_features"):
        return model.get_image_features(images).pooler_output
    if isinstance(model, hf.ViTMAEModel):
        model.config.mask_ratio = 0.0
        return model(images, noise=torch.arange(16.0).expand(4, -1)).last_hidden_state[:, 0]
    output = getattr(model, "visual", model)(images)
    if isinstance(output, Tensor | tuple):
        return output[0] if isinstance(output, tuple) else output
    read = next((key for key in ("logits", "image_embeds", "pooler_output") if key in output), None)
    return output[read] if read else output.last_hidden_state[:, 0]
