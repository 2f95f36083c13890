"""F-ViT on detectron2: `GeneralizedRCNN` over a frozen CLIP, with the text of class names for a classifier.

`build_fvit` puts the detector together; a LazyConfig writes it as `L(build_fvit)(clip=L(FrozenClip)(...), ...)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from class_embeddings import ClassEmbeddings
from fvit.clip_pyramid import FViTBackbone
from fvit.frozen_clip import FrozenClip
from fvit.fvit_layers import SquareDetector
from fvit.fvit_roi_heads import build_roi_heads
from fvit.fvit_rpn import build_rpn
from fvit.text_classifier import TextClassifier
from torch import Tensor

# F-ViT normalises with ImageNet's statistics, in training and test, though its CLIP was trained with CLIP's own.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class FViT(SquareDetector):
    """F-ViT (arXiv:2310.01403) on detectron2: dictionaries in, losses or `Instances` out.

    Inputs are detectron2's: "image" uint8 or float [3, H, W] RGB in 0-255, "instances" with gt_boxes, gt_classes and,
    with the mask head, gt_masks in training, "height" and "width" for the answer's size in test. Answers have
    pred_boxes, scores, pred_classes (places in `vocabulary.names`) and, with the mask head, pred_masks.

    Args:
        vocabulary: Classes, as the text classifier in `roi_heads` has them.
        parts: As `GeneralizedRCNN`; the backbone is a `FViTBackbone`, the heads are `FViTRoIHeads`.
    """

    def __init__(self, vocabulary: ClassEmbeddings, **parts: Any) -> None:
        super().__init__(**parts, input_format="RGB")
        self.vocabulary = vocabulary
        is_base = self.roi_heads.box_predictor.classifier.is_base.tolist()
        self.base_names = frozenset(name for name, base in zip(vocabulary.names, is_base, strict=True) if base)

    def inference(self, batched_inputs: list[dict[str, Any]], *args: Any, **options: Any) -> list[Any]:
        """As `GeneralizedRCNN`; answers have "regions" too, while the heads keep them."""
        answers = super().inference(batched_inputs, *args, **options)
        if self.roi_heads.keep_regions is None or self.roi_heads.regions is None:
            return answers
        return [{**answer, "regions": own} for answer, own in zip(answers, self.roi_heads.regions, strict=True)]

    @property
    def belongs_to(self) -> dict[str, tuple[str, str]]:
        """See `SquareDetector`."""
        return {"clip": ("frozen CLIP", "set model.clip to its own")}

    @property
    def about(self) -> dict[str, Any]:
        """See `SquareDetector`."""
        return {"clip": self.backbone.clip.source, "base_names": sorted(self.base_names)}

    @property
    def described(self) -> dict[str, Any]:
        """See `SquareDetector`."""
        words = {"tower": self.vocabulary.tower, "prompts": self.vocabulary.prompts, "classes": len(self.vocabulary)}
        score = {"vision_language_score": self.backbone.dense}
        return {"clip": self.backbone.clip.source, "vocabulary": words, **score}


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
    pixel_mean: Sequence[float] = IMAGENET_MEAN,
    pixel_std: Sequence[float] = IMAGENET_STD,
) -> FViT:
    """A detector in training mode, with F-ViT's OV-COCO values where nothing is said.

    What differs for OV-LVIS stands in ov_detection/configs/common/ov_lvis.py. `classifier`, `rpn` and `roi_heads` are
    arguments of `TextClassifier`, `build_rpn` and `build_roi_heads`, `norm` and `square_size` those of `FViTBackbone`,
    pixels are RGB in 0-255. `vision_language_score=False` scores regions by the detector alone (alpha and beta mean
    nothing then), so that embeddings of any text tower can classify, whatever the image tower is.
    ValueError: Embeddings that do not fit the tower, values out of range. An unknown argument is a TypeError.
    """
    backbone = FViTBackbone(clip, channels, norm, square_size, vision_language_score)
    levels = dict(backbone.strides)
    width = clip.embed_dim if vision_language_score else vocabulary.width
    text = TextClassifier(vocabulary, is_base, width, **(classifier or {}))
    proposals = build_rpn(levels, channels, **(rpn or {}))
    del levels["p6"]  # only gives proposals
    heads = build_roi_heads(text, levels, clip.patch_size, channels, **{"norm": norm, **(roi_heads or {})})
    return FViT(
        vocabulary,
        backbone=backbone,
        proposal_generator=proposals,
        roi_heads=heads,
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
    )
