"""From the blocks of a frozen CLIP to F-ViT's feature pyramid: upsamplers of block outputs, and detectron2's FPN."""

from collections.abc import Sequence

from detectron2.layers import get_norm
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from fvit.frozen_clip import FrozenClip
from fvit.fvit_layers import choose_norm
from torch import Tensor, nn

_LEVELS = ("level0", "level1", "level2", "level3")


class BlockUpsamplers(Backbone):
    """Outputs of four blocks of `width` channels, shallow to deep, at 4, 2, 1 and 1/2 times the patch grid."""

    def __init__(self, width: int, norm: str = "auto") -> None:
        super().__init__()
        self.level0 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            get_norm(choose_norm(norm), width) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
        self.level1 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2))
        self.level2 = nn.Identity()
        self.level3 = nn.MaxPool2d(2, 2)
        # FPN names its layers after strides and wants powers of two: these are a patch of 16 pixels' in all cases.
        self._out_features = list(_LEVELS)
        self._out_feature_strides = dict(zip(_LEVELS, (4, 8, 16, 32), strict=True))
        self._out_feature_channels = dict.fromkeys(_LEVELS, width)

    def forward(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Four maps [B, width, h, w] -> level0 [B, width, 4 h, 4 w] to level3 [B, width, h / 2, w / 2]."""
        return {name: getattr(self, name)(block) for name, block in zip(_LEVELS, blocks, strict=True)}


class FViTBackbone(Backbone):
    """Frozen CLIP, upsamplers and FPN with `channels` per level as one detectron2 backbone.

    Images are padded at the right and the bottom to a square of `square_size`; 0 pads to the largest of the batch and
    what the strides need, so that answers depend, a little, on what an image is batched with. F-ViT: 640 (COCO, B/16),
    1024 (LVIS, B/16), 896 (L/14), as its towers take squares only; ours take any shape. `norm` is as in `choose_norm`,
    `dense` says whether to give the vision-language map in test mode.
    """

    def __init__(
        self, clip: FrozenClip, channels: int = 256, norm: str = "auto", square_size: int = 0, dense: bool = True
    ) -> None:
        super().__init__()
        norm = choose_norm(norm)
        self.clip = clip
        self.fpn = FPN(BlockUpsamplers(clip.width, norm), list(_LEVELS), channels, norm, LastLevelMaxPool())
        for layer in (*self.fpn.lateral_convs, *self.fpn.output_convs):
            nn.init.xavier_uniform_(layer.weight)  # F-ViT's; detectron2's is wider
        if square_size % self.size_divisibility:
            raise ValueError(
                f"square_size must be a multiple of {self.size_divisibility} (two patches of {clip.patch_size} "
                f"pixels), got {square_size}"
            )
        self.square_size = square_size
        self.dense = dense
        # P2 to P6: patch 16 has strides 4 to 64, patch 14 has 3.5 to 56
        self.strides = {f"p{level}": clip.patch_size * 2.0 ** (level - 4) for level in range(2, 7)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] normalised, sides multiples of two patches -> p2 to p6, each [B, channels, h, w].

        In test mode, where asked for, also "dense", the vision-language map [B, E, H / patch, W / patch] of unit
        vectors.
        """
        features = self.clip(images, with_dense=self.dense and not self.training)
        maps = self.fpn(features.blocks)
        return maps if features.dense is None else {**maps, "dense": features.dense}

    @property
    def size_divisibility(self) -> int:
        """The deepest level halves the patch grid, and the FPN doubles it again."""
        return 2 * self.clip.patch_size

    @property
    def padding_constraints(self) -> dict[str, int]:
        """See `square_size`."""
        return {"square_size": self.square_size}
