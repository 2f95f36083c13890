"""A trained model's patch tokens as a frozen feature map, each image computed once: the backbone of a probe."""

import torch
from detectron2.modeling.backbone import Backbone
from frozen_tower import FeatureCache, FrozenTower
from torch import Tensor

from last_vit.dense import dense_forward, find_patch_size
from last_vit.models import parse_model_argument


class FrozenHost(FrozenTower, Backbone):
    """Any model that `last_vit.models` reads, on squares of `image_size` pixels; nothing of it is trained or changed.

    Its patch tokens are those that every diagnostic here reads: of its own forward, class token and registers
    included, after its final norm. The first `cache_images` images are kept (`FeatureCache`).
    """

    def __init__(self, init: str, image_size: int, cache_images: int = 0) -> None:
        super().__init__()
        self.trained = parse_model_argument(init).load(image_size)
        self.hold(self.trained.model)
        self.cache = FeatureCache(cache_images)
        with torch.no_grad():
            width = dense_forward(self.tower, torch.zeros(1, 3, image_size, image_size)).patch_tokens.shape[2]
        self._out_features = ["last_feat"]
        self._out_feature_channels = {"last_feat": width}
        self._out_feature_strides = {"last_feat": find_patch_size(self.tower, image_size)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, S, S] normalised -> "last_feat" [B, D, S / patch, S / patch], float32."""
        return {"last_feat": self.cache.get(images, self._run)[0]}

    @torch.no_grad()
    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        out = dense_forward(self.tower, images)
        return (out.patch_tokens.float().transpose(1, 2).unflatten(2, out.grid_hw),)
