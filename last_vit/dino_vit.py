"""DINO's Vision Transformers on timm: DINO's state-dict keys, initial values and resizing of position embeddings.

timm's `VisionTransformer` has the same layers under the same names; what differs is here. Attention is timm's, fused
(`F.scaled_dot_product_attention`). As a timm model it takes pools from `last_vit.dense.attach_pool`.

The position embedding belongs to the square grid that the model was trained on (224 pixels). For another grid DINO
resizes it, in every forward pass, by the factor (g + 0.1) / trained g per axis, bicubic; the 0.1, once a guard against
rounding, moves the sampling points and so is part of what released weights were trained with.
"""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

# name -> (embed_dim, depth, num_heads); vit_mini is not DINO's: a third of vit_tiny, for small images on a CPU
DINO_VITS = {
    "vit_mini": (192, 4, 3),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
}


class DinoVisionTransformer(VisionTransformer):
    """DINO's ViT: one CLS token, learned positions, LayerNorm eps 1e-6, no classifier.

    Its position embedding has the grid of square images of `img_size` pixels, a positive multiple of `patch_size`, else
    ValueError. `drop_path_rate` is that of the last block's residuals in training; it rises linearly from 0.
    """

    def __init__(
        self, img_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, drop_path_rate: float = 0.0
    ) -> None:
        if patch_size < 1 or img_size < patch_size or img_size % patch_size:
            raise ValueError(f"img_size must be a multiple of patch_size {patch_size}, got {img_size} (pixels)")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D] after the final norm; H and W must be multiples of the patch size."""
        patch, (height, width) = self.patch_embed.patch_size[0], x.shape[2:]
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(
                f"images are {height} x {width} pixels (height x width), which must be multiples of the patch size "
                f"{patch}; resize, crop or pad them"
            )
        return super().forward_features(x, attn_mask, is_causal)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Timm's hook between patch embedding [B, h, w, D] and blocks [B, 1 + N, D]."""
        batch, height, width, _ = x.shape
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)), dim=1)
        return tokens + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embedding [1, 1 + height * width, D] for a grid, resized as DINO does."""
        side = self.patch_embed.grid_size[0]
        if height == width == side:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        factors = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


def build_dino_vit(
    arch: str, patch_size: int, img_size: int = 224, drop_path_rate: float = 0.0
) -> DinoVisionTransformer:
    """DINO's ViT by its name in `DINO_VITS`, with fresh weights, in training mode; ValueError for another name.

    It returns its global token [B, D], the CLS token unless a pool is attached.
    """
    if arch not in DINO_VITS:
        raise ValueError(f"a DINO ViT is one of {', '.join(DINO_VITS)}, got {arch!r}")
    return DinoVisionTransformer(img_size, patch_size, *DINO_VITS[arch], drop_path_rate)


def dino_parts(name: str) -> tuple[str, int]:
    """What stands behind `dino:` in a model spec -> architecture and patch size; ValueError for another form."""
    arch, _, patch_size = name.partition("/")
    if not patch_size.isdecimal():
        raise ValueError(f"a DINO ViT is given as dino:<arch>/<patch>, such as dino:vit_small/16, got 'dino:{name}'")
    return arch, int(patch_size)
