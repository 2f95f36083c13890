"""F-ViT on detectron2: its detector over a frozen CLIP, with the text of class names for a classifier.

`build_fvit` puts the detector together; a LazyConfig writes it as `L(build_fvit)(clip=L(FrozenClip)(...), ...)`.
"""

from collections.abc import Mapping
from typing import Any

from class_embeddings import ClassEmbeddings
from fvit.box_predictor import TextClassifier
from fvit.clip_pyramid import FViTBackbone
from fvit.frozen_clip import FrozenClip
from fvit.fvit_heads import build_roi_heads, build_rpn
from fvit.fvit_layers import SquareDetector
from torch import Tensor

from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def build_fvit(
    clip: FrozenClip,
    vocabulary: ClassEmbeddings,
    is_base: Tensor,
    *,
    channels: int = 256,
    norm: str = "auto",
    square_size: int = 0,
    vision_language_score: bool = True,
    classifier: Mapping[str, Any] | None = None,
    rpn: Mapping[str, Any] | None = None,
    roi_heads: Mapping[str, Any] | None = None,
) -> SquareDetector:
    """F-ViT (arXiv:2310.01403) in training mode, with its OV-COCO values where nothing is said.

    What differs for OV-LVIS stands in ov_detection/configs/common/ov_lvis.py. `classifier`, `rpn` and `roi_heads` are
    arguments of `TextClassifier`, `build_rpn` and `build_roi_heads`, `norm` and `square_size` those of `FViTBackbone`.
    `vision_language_score=False` scores regions by the detector alone (alpha and beta mean nothing then), so that
    embeddings of any text tower can classify, whatever the image tower is.
    ValueError: Embeddings that do not fit the tower, values out of range. An unknown argument is a TypeError.
    """
    backbone = FViTBackbone(clip, channels, norm, square_size, vision_language_score)
    levels = dict(backbone.strides)
    width = clip.embed_dim if vision_language_score else vocabulary.width
    text = TextClassifier(vocabulary, is_base, width, **(classifier or {}))
    proposals = build_rpn(levels, channels, **(rpn or {}))
    del levels["p6"]  # only gives proposals
    heads = build_roi_heads(text, levels, clip.patch_size, channels, **{"norm": norm, **(roi_heads or {})})
    words = {"tower": vocabulary.tower, "prompts": vocabulary.prompts, "classes": len(vocabulary)}
    base_names = {name for name, base in zip(vocabulary.names, is_base.tolist(), strict=True) if base}
    return SquareDetector(
        vocabulary.names,
        about={"clip": clip.source, "base_names": sorted(base_names)},
        belongs_to={"clip": ("frozen CLIP", "set model.clip to its own")},
        described={"vocabulary": words, "vision_language_score": vision_language_score},
        backbone=backbone,
        proposal_generator=proposals,
        roi_heads=heads,
        # ImageNet's, in training and test, though its CLIP was trained with CLIP's own
        pixel_mean=[255 * value for value in IMAGENET_MEAN],
        pixel_std=[255 * value for value in IMAGENET_STD],
    )
