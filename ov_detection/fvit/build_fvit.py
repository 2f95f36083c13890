"""One call that puts F-ViT together; what a LazyConfig writes as `L(build_fvit)(clip=L(FrozenClip)(...), ...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fvit.clip_pyramid import FViTBackbone
from fvit.fvit_model import IMAGENET_MEAN, IMAGENET_STD, FViT
from fvit.fvit_roi_heads import build_roi_heads
from fvit.fvit_rpn import build_rpn
from fvit.text_classifier import TextClassifier

if TYPE_CHECKING:
    from class_embeddings import ClassEmbeddings, ClassSplit

    from fvit.frozen_clip import FrozenClip


def build_fvit(
    clip: FrozenClip,
    vocabulary: ClassEmbeddings,
    split: ClassSplit,
    *,
    channels: int = 256,
    norm: str = "auto",
    square_size: int = 0,
    vision_language_score: bool = True,
    classifier: Mapping[str, Any] | None = None,
    rpn: Mapping[str, Any] | None = None,
    roi_heads: Mapping[str, Any] | None = None,
    pixel_mean: Sequence[float] = IMAGENET_MEAN,
    pixel_std: Sequence[float] = IMAGENET_STD,
) -> FViT:
    """A detector, with F-ViT's OV-COCO values where nothing is said.

    What differs between F-ViT's two benchmarks:

        |                           | OV-COCO  | OV-LVIS                            |
        | square_size               | 640, 896 | 1024 (B/16), 896 (L/14)            |
        | classifier                |          | background_weight=0.9              |
        | rpn                       |          | norm="auto"                        |
        | roi_heads                 |          | masks=True, low_quality=True, vlm_temperature=50, beta=0.6 (B/16) or
                                                 0.4 (L/14), score_thresh=1e-4, nms_thresh=0.5,
                                                 detections_per_image=300 |

    Args:
        clip: Frozen tower.
        vocabulary: Classes, from the text tower of the same CLIP.
        split: Its base and novel classes.
        channels: Of the pyramid.
        norm: Of pyramid and region heads, see `choose_norm`.
        square_size: See `FViTBackbone`.
        vision_language_score: False scores regions by the detector alone (alpha and beta mean nothing then), so that
            embeddings of any text tower can classify, whatever the image tower is: for towers that know no text.
        classifier: Arguments of `TextClassifier`: temperature, class weights.
        rpn: Arguments of `build_rpn`.
        roi_heads: Arguments of `build_roi_heads`: masks, sampling, fusion, thresholds.
        pixel_mean: RGB, in 0-255.
        pixel_std: Likewise.

    Returns:
        The detector, in training mode.

    Raises:
        ValueError: Embeddings of another width than the tower's, a split of other classes, values out of range.
        TypeError: An unknown argument.
    """
    if not (split.base ^ split.novel).all():
        raise ValueError(f"every one of the {len(vocabulary)} classes must be either base or novel")
    backbone = FViTBackbone(clip, channels, norm, square_size, vision_language_score)
    levels = dict(backbone.strides)
    width = clip.embed_dim if vision_language_score else vocabulary.width
    text = TextClassifier(vocabulary, split.base, width, **(classifier or {}))
    proposals = build_rpn(levels, channels, **(rpn or {}))
    del levels["p6"]  # only gives proposals
    heads = build_roi_heads(text, levels, clip.patch_size, channels, **{"norm": norm, **(roi_heads or {})})
    return FViT(
        backbone=backbone,
        proposal_generator=proposals,
        roi_heads=heads,
        vocabulary=vocabulary,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )
