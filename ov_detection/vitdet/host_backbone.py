"""A trained model as a detector's backbone: its weights in detectron2's `ViT`, every tensor or an error, or frozen.

The model is built by its text (`last_vit.models`), so whatever file can be read can start a detector. Left out on
purpose, and logged: class token, registers, final norm and head, for ViTDet's attention sees patches alone and its
pyramid takes the last block as it is. Positions of patches are brought to the grid of the detector's own embedding
(its pretrain_img_size), bicubic; relative positions are new and start as the detector drew them, at zero.
"""

import re

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import ViT
from fvit.frozen_clip import FeatureCache, FrozenTower
from torch import Tensor

from last_vit.adapters import unwrap_host
from last_vit.checkpoint import load_strict, shorten
from last_vit.dense import dense_forward, find_patch_size
from last_vit.models import parse_model_argument
from last_vit.train_lib import logger
from last_vit.weights import TrainedModel

# torchvision's names -> those of timm and DINO, which are detectron2's
_TORCHVISION = {
    "conv_proj.": "patch_embed.proj.",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
}
_LEFT_OUT = re.compile(
    r"cls_token|class_token|dist_token|reg_token|register_tokens|(norm|fc_norm|encoder\.ln|head|heads|head_dist)\..+"
)


def start_from(vit: ViT, init: str) -> TrainedModel:
    """Load the weights of the model that a text names into a `ViT` without a class token's position, in place.

    ValueError: A model of another width, depth, patch size or number of heads, or with parts that `ViT` has not; the
    message names what is missing, left over and of another shape. FileNotFoundError: No such file.
    """
    trained = parse_model_argument(init).load()
    host = unwrap_host(trained.model)
    own = host.state_dict()
    left_out = [name for name in own if _LEFT_OUT.fullmatch(name)]
    weights = {_renamed(name): value for name, value in own.items() if name not in left_out}
    fresh = {name: value for name, value in vit.state_dict().items() if ".rel_pos_" in name}
    words = ""
    try:
        if {"pos_embed", "patch_embed.proj.weight"} <= weights.keys():
            grid = trained.preprocessing.crop // weights["patch_embed.proj.weight"].shape[-1]
            side = round(vit.pos_embed.shape[1] ** 0.5)
            patches = weights["pos_embed"][:, -(grid**2) :]  # prefix tokens come first
            weights["pos_embed"] = get_abs_pos(patches, False, (side, side)).flatten(1, 2)
            words = f", positions {grid} x {grid} -> {side} x {side}"
        load_strict(vit, {**weights, **fresh})
        heads = {module.num_heads for module in host.modules() if hasattr(module, "num_heads")}  # no shape tells it
        if heads != {vit.blocks[0].attn.num_heads}:
            raise ValueError(f"its blocks have {heads} heads, model.net.num_heads={vit.blocks[0].attn.num_heads}")
    except ValueError as error:
        raise ValueError(f"model.init={init} cannot be the backbone that model.net describes: {error}") from error
    logger.info(
        "Backbone from %s: %d tensors%s; left out on purpose: %s; new: %d relative positions",
        *(init, len(weights), words, shorten(left_out, 20), len(fresh)),
    )
    return trained


def _renamed(name: str) -> str:
    for theirs, ours in _TORCHVISION.items():
        name = name.replace(theirs, ours)
    return name


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
