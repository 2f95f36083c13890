"""Tiny random hosts of transformers, and look-alikes of the published DINO and CLIP classes.

The look-alikes keep the names and the forward contract that the adapters rely on, and nothing else of the originals.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import transformers as hf
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import Block
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn import functional as F

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VIT = {**_SIZES, "intermediate_size": 32, "num_labels": 5}
_DINOV2 = {**_SIZES, "mlp_ratio": 2, "num_labels": 5}
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
_CLIP = hf.CLIPConfig(
    vision_config=hf.CLIPVisionConfig(**VIT, projection_dim=6),
    text_config=hf.CLIPTextConfig(**_TEXT, projection_dim=6),
    projection_dim=6,
    num_labels=5,
)
_SIGLIP = hf.SiglipConfig(
    vision_config=hf.SiglipVisionConfig(**VIT), text_config=hf.SiglipTextConfig(**_TEXT), num_labels=5
)
_CONFIGS = {
    "ViTModel ViTForImageClassification": hf.ViTConfig(**VIT),
    "ViTMSNModel ViTMSNForImageClassification": hf.ViTMSNConfig(**VIT),
    "ViTMAEModel": hf.ViTMAEConfig(**VIT),
    "DeiTModel DeiTForImageClassification DeiTForImageClassificationWithTeacher": hf.DeiTConfig(**VIT),
    "Dinov2Model Dinov2ForImageClassification": hf.Dinov2Config(**_DINOV2),
    "Dinov2WithRegistersModel Dinov2WithRegistersForImageClassification": hf.Dinov2WithRegistersConfig(**_DINOV2),
    "DINOv3ViTModel": hf.DINOv3ViTConfig(**VIT, num_register_tokens=4),
    "CLIPVisionModel CLIPVisionModelWithProjection": _CLIP.vision_config,
    "CLIPModel CLIPForImageClassification": _CLIP,
    "SiglipVisionModel": _SIGLIP.vision_config,
    "SiglipModel SiglipForImageClassification": _SIGLIP,
}


def build_transformers(name: str, config: hf.PreTrainedConfig) -> nn.Module:
    return getattr(hf, name)(copy.deepcopy(config))  # models keep, and adapters may change, what they are given


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    name: partial(build_transformers, name, config) for names, config in _CONFIGS.items() for name in names.split()
}


class TinyDino(nn.Module):
    """DINO: position embeddings at any size, the first token after `norm`; the head is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, kernel_size=8, stride=8)
        self.patch_embed.patch_size = 8
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(Block(16, num_heads=2) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Identity()

    def embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        patches = patches + F.interpolate(grid, patches.shape[2:], mode="bicubic")
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


class TinyDinov2(TinyDino):
    """DINOv2: registers behind the class token, features as a mapping, blocks in chunks if wanted."""

    patch_size = 8

    def __init__(self, num_register_tokens: int = 0, chunked: bool = False) -> None:
        super().__init__()
        self.num_register_tokens = num_register_tokens
        self.register_tokens = nn.Parameter(torch.randn(1, num_register_tokens, 16))
        if chunked:
            first, second = self.blocks
            self.blocks = nn.ModuleList([_Chunk([first]), _Chunk([nn.Identity(), second])])

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.embed(images)
        registers = self.register_tokens.expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, 1 + self.num_register_tokens :]}

    def forward(self, images: Tensor, is_training: bool = False) -> dict[str, Tensor] | Tensor:
        features = self.forward_features(images)
        return features if is_training else self.head(features["x_norm_clstoken"])


class _Chunk(nn.ModuleList):
    def forward(self, tokens: Tensor) -> Tensor:
        for block in self:
            tokens = block(tokens)
        return tokens


class _ListBlock(Block):
    """DINOv3's blocks take and return lists of token tensors, one per image size."""

    def forward(self, tokens: list[Tensor], rope: list[None]) -> list[Tensor]:
        return [super(_ListBlock, self).forward(each) for each in tokens]


class TinyDinov3(TinyDino):
    """DINOv3: storage tokens behind the class token, blocks on lists."""

    patch_size = 8

    def __init__(self, untied: bool = False) -> None:
        super().__init__()
        self.n_storage_tokens = 4
        self.storage_tokens = nn.Parameter(torch.randn(1, 4, 16))
        self.untie_cls_and_patch_norms, self.untie_global_and_local_cls_norm = False, untied
        self.blocks = nn.ModuleList(_ListBlock(16, num_heads=2) for _ in range(2))

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.embed(images)
        storage = self.storage_tokens.expand(len(images), -1, -1)
        tokens = [torch.cat([tokens[:, :1], storage, tokens[:, 1:]], dim=1)]
        for block in self.blocks:
            tokens = block(tokens, [None])
        normed = self.norm(tokens[0])
        return {"x_norm_clstoken": normed[:, 0], "x_norm_patchtokens": normed[:, 5:]}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images)["x_norm_clstoken"])


class TinyLinear(nn.Module):
    """torch.hub's linear classifier: class token and mean of patches, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = TinyDinov2(num_register_tokens=4)
        self.linear_head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.forward_features(images)
        read = [features["x_norm_clstoken"], features["x_norm_patchtokens"].mean(dim=1)]
        return self.linear_head(torch.cat(read, dim=1))


class _SequenceFirstBlock(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.transpose(0, 1)).transpose(0, 1)


class TinyOpenAITower(nn.Module):
    """OpenAI's image tower: blocks on [1 + N, B, D], the class token alone through `ln_post` and `proj`."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (_SequenceFirstBlock(16, num_heads=2) for _ in range(2))
        self.input_resolution = 32
        self.conv1 = nn.Conv2d(3, 16, kernel_size=8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(16))
        self.positional_embedding = nn.Parameter(torch.randn(17, 16))
        self.transformer = nn.Sequential(OrderedDict(resblocks=nn.Sequential(*blocks)))
        self.ln_post = nn.LayerNorm(16)
        self.proj = nn.Parameter(torch.randn(16, 6))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positional_embedding
        tokens = self.transformer(tokens.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(tokens[:, 0, :]) @ self.proj


class TinyOpenAIClip(nn.Module):
    """OpenAI's CLIP without its text tower."""

    def __init__(self, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.visual = TinyOpenAITower() if visual is None else visual


for cls, name in {
    TinyDino: "vision_transformer.VisionTransformer",
    TinyDinov2: "dinov2.models.vision_transformer.DinoVisionTransformer",
    TinyDinov3: "dinov3.models.vision_transformer.DinoVisionTransformer",
    TinyLinear: "dinov2.hub.classifiers._LinearClassifierWrapper",
    TinyOpenAITower: "clip.model.VisionTransformer",
    TinyOpenAIClip: "clip.model.CLIP",
}.items():
    cls.__module__, _, cls.__qualname__ = name.rpartition(".")

_TIMM = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_FIXED = {**_TIMM, "img_size": 32, "num_classes": 5}


def naflex(**options: object) -> nn.Module:
    return NaFlexVit(NaFlexVitCfg(**_TIMM, reg_tokens=2, **options), num_classes=5, img_size=32)


TIMM: dict[str, Callable[[], nn.Module]] = {
    "beit": partial(Beit, **_FIXED, global_pool="token"),
    "relpos": partial(VisionTransformerRelPos, **_FIXED, fc_norm=False),
    "relpos-token": partial(VisionTransformerRelPos, **_FIXED, class_token=True, global_pool="token"),
    "deit-distilled": partial(VisionTransformerDistilled, **_FIXED),
    "naflex": partial(naflex, class_token=True, global_pool="token"),
    "naflex-gap": partial(naflex, class_token=False, global_pool="avg", fc_norm=False),
}
HUB: dict[str, Callable[[], nn.Module]] = {
    "dino": TinyDino,
    "dinov2": TinyDinov2,
    "dinov2-registers": lambda: TinyDinov2(num_register_tokens=4),
    "dinov2-chunks": lambda: TinyDinov2(chunked=True),
    "dinov2-linear": TinyLinear,
    "dinov3": TinyDinov3,
    "clip-tower": TinyOpenAITower,
    "clip": TinyOpenAIClip,
}
