"""How images become a model's input: the numbers that travel with weights, specs and results, and a ViT's size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize`, centre crop to `crop`, then normalised; the default is ImageNet's 256 / 224."""

    mean: tuple[float, float, float] = IMAGENET_MEAN  # per RGB channel, of values in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD  # likewise
    resize: int = 256  # shorter side before the crop, in pixels
    crop: int = 224  # side of the centre crop, in pixels
    interpolation: str = "bilinear"  # or "bicubic"

    def resized(self, image_size: int | None = None, resize: int | None = None) -> "Preprocessing":
        """Another crop, for which the shorter side keeps its ratio to it, and another shorter side, both in pixels.

        ValueError: A crop that is larger than the shorter side.
        """
        found = self
        if image_size is not None:
            found = replace(found, resize=round(image_size * found.resize / found.crop), crop=image_size)
        if resize is not None:
            found = replace(found, resize=resize)
        if not 1 <= found.crop <= found.resize:
            raise ValueError(f"the crop must be in [1, resize], got crop {found.crop} and resize {found.resize} pixels")
        return found


def trained_img_size(weights: Mapping[str, Tensor]) -> int | None:
    """Side in pixels of the images whose grid the position embedding of a ViT with a CLS token has; None without one.

    The weights are named as DINO, timm or torchvision name those of their ViT.
    """
    positions = weights.get("pos_embed", weights.get("encoder.pos_embedding"))
    patches = weights.get("patch_embed.proj.weight", weights.get("conv_proj.weight"))
    if positions is None or patches is None:
        return None
    return math.isqrt(max(1, positions.shape[1] - 1)) * patches.shape[-1]


def add_registers(model: nn.Module, num_registers: int) -> None:
    """Give a timm ViT, in place, R `reg_token`s [1, R, D] behind its class token; their positions start as zeros."""
    model.reg_token = nn.Parameter(torch.randn_like(model.cls_token.expand(1, num_registers, -1)) * 1e-6)
    if not model.no_embed_class:
        first, patches = model.pos_embed.detach().split([1, model.pos_embed.shape[1] - 1], dim=1)
        model.pos_embed = nn.Parameter(torch.cat([first, torch.zeros_like(model.reg_token), patches], dim=1))
    model.num_reg_tokens += num_registers
    model.num_prefix_tokens += num_registers


def sized_patches(model: nn.Module) -> nn.Module | None:
    """What cuts a timm model's images of one size into patches; None for models of any size, or of no patches."""
    patches = getattr(model, "patch_embed", None)
    is_sized = hasattr(model, "set_input_size") and hasattr(patches, "feat_ratio") and patches.img_size is not None
    return patches if is_sized else None


def take_grid(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a timm model the registers and the square grid that its weights have, where it has none or another.

    What still differs is for strict loading to tell.
    """
    if "reg_token" in weights and getattr(model, "reg_token", 0) is None:
        add_registers(model, weights["reg_token"].shape[1])
    positions, own, patches = weights.get("pos_embed"), getattr(model, "pos_embed", None), sized_patches(model)
    if positions is None or own is None or patches is None or positions.shape == own.shape:
        return
    num_prefix_tokens = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    side = math.isqrt(max(1, positions.shape[1] - num_prefix_tokens))
    if side**2 + num_prefix_tokens == positions.shape[1]:
        model.set_input_size(img_size=side * patches.feat_ratio())


def check_whole_patches(image_size: int, patch_size: int) -> None:
    """Raise a ValueError for images that whole patches do not fill: timm would leave pixels at their edges out."""
    if image_size < patch_size or image_size % patch_size:
        below = max(1, image_size // patch_size) * patch_size
        raise ValueError(
            f"the image size must be a multiple of the patch size {patch_size}, got {image_size} pixels; near ones: "
            f"{below}, {below + patch_size}"
        )


def set_image_size(model: nn.Module, image_size: int) -> None:
    """Resize the position embedding of timm's or torchvision's ViT for square images, as its library does, in place.

    Models without such an embedding are left alone. ValueError for a size that is not a multiple of the patches'.
    """
    if (patches := sized_patches(model)) is not None:
        check_whole_patches(image_size, patches.feat_ratio())
        model.set_input_size(img_size=image_size)
    elif isinstance(model, VisionTransformer) and image_size != model.image_size:
        check_whole_patches(image_size, model.patch_size)
        weights = interpolate_embeddings(image_size, model.patch_size, model.state_dict())
        model.encoder.pos_embedding = nn.Parameter(weights["encoder.pos_embedding"])
        model.image_size, model.seq_length = image_size, model.encoder.pos_embedding.shape[1]
