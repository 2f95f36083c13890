"""F-ViT's proposals and region heads, which are detectron2's with other parts.

The RPN has F-ViT's head, anchors, assignment and its mean over sampled anchors; the heads have its poolers, text
classifier and vision-language score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvit.box_predictor import OpenVocabularyPredictor, Regions, TextClassifier, detect_in
from fvit.fvit_layers import ClampedBoxTransform, IoUMatcher, PyramidRoIAlign, choose_norm, zoo_rpn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align


class ProposalHead(StandardRPNHead):
    """detectron2's head of several convolutions (F-ViT: 2), with a norm after each where asked, and float32 answers."""

    def __init__(self, *, norm: str = "", **parts: Any) -> None:
        super().__init__(**parts)
        for conv in (module for module in self.conv.modules() if norm and isinstance(module, Conv2d)):
            conv.norm, conv.bias = get_norm(norm, conv.out_channels), None

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels [B, C, h, w] -> per level objectness [B, A, h, w] and deltas [B, 4 A, h, w]."""
        logits, deltas = super().forward(features)
        return [level.float() for level in logits], [level.float() for level in deltas]


class ProposalNetwork(RPN):
    """detectron2's RPN whose losses are means over the anchors that were sampled.

    detectron2 divides by the number asked for, which is another where too few anchors are negative or positive.
    """

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """See `RPN.losses`."""
        losses = super().losses(anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        asked = self.batch_size_per_image * len(gt_labels)
        sampled = torch.stack(gt_labels).ge(0).sum().clamp(min=1)  # no number: that would wait for the GPU
        return {name: loss * (asked / sampled) for name, loss in losses.items()}


def build_rpn(
    levels: Mapping[str, float],
    channels: int = 256,
    *,
    norm: str = "",
    pre_nms_topk: Sequence[int] = (2000, 2000),
    **options: Any,
) -> ProposalNetwork:
    """F-ViT's proposal network: `zoo_rpn` with its own parts and OV-COCO's values; `norm` is "auto" on OV-LVIS."""
    rpn = zoo_rpn(levels, channels, pre_nms_topk=pre_nms_topk, **options)
    rpn.head.update(_target_=ProposalHead, norm=choose_norm(norm))
    matcher = IoUMatcher(0.3, 0.7, low_quality=True, min_low_quality=0.3)
    transform = ClampedBoxTransform((1.0, 1.0, 1.0, 1.0))
    return instantiate({**rpn, "_target_": ProposalNetwork, "anchor_matcher": matcher, "box2box_transform": transform})


def region_embeddings(dense: Tensor, boxes: Sequence[Boxes], stride: float) -> Tensor:
    """Vision-language feature of each box: the mean of the normalised dense map over it (RoIAlign 1x1), normalised.

    The map is [B, E, h, w] with `stride` pixels per cell, boxes are in pixels; the answer is [R, E] float32.
    """
    regions = convert_boxes_to_pooler_format(list(boxes)).float()
    return F.normalize(roi_align(dense.float(), regions, 1, 1 / stride, aligned=True).flatten(1), dim=1)


class FViTRoIHeads(StandardROIHeads):
    """`StandardROIHeads` whose test also looks at the dense vision-language map, on the proposals themselves.

    `dense_stride` is the pixels per cell of that map; the `box_predictor` is an `OpenVocabularyPredictor`. While
    `keep_regions` is a number, `regions` are those of the last batch in test: the detections' and so many others.
    """

    keep_regions: int | None = None
    regions: list[Regions] | None = None

    def __init__(self, *, dense_stride: float, **parts: object) -> None:
        super().__init__(**parts)
        self.dense_stride = dense_stride

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """As `StandardROIHeads`; in test mode `features` may also hold "dense"."""
        boxes = [image.proposal_boxes for image in proposals]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        if self.training:
            return self.box_predictor.losses((logits, deltas), proposals)
        dense = features.get("dense")
        cosines = None
        if dense is not None:
            cosines = self.box_predictor.classifier.cosines(region_embeddings(dense, boxes, self.dense_stride))
        predictor = self.box_predictor
        every, scoring = predictor.regions((logits, deltas), cosines, proposals), predictor.scoring()
        found, kept = zip(*(detect_in(each, predictor.classifier.is_base, scoring) for each in every), strict=True)
        if self.keep_regions is not None and cosines is not None:
            chosen = zip(every, kept, strict=True)
            self.regions = [r.select(places, self.keep_regions, predictor.vlm_temperature) for r, places in chosen]
        return list(found)


def build_roi_heads(
    classifier: TextClassifier,
    levels: dict[str, float],
    dense_stride: float,
    channels: int = 256,
    *,
    masks: bool = False,
    norm: str = "auto",
    low_quality: bool = False,
    batch_size_per_image: int = 512,
    fc_width: int | None = None,
    num_convs: int = 4,
    conv_width: int = 256,
    **predictor: float | str,
) -> FViTRoIHeads:
    """F-ViT's region heads; defaults are OV-COCO's.

    `levels` maps pyramid levels to strides in pixels, without the coarsest one (P6), which only gives proposals;
    `dense_stride` is the tower's patch size. `masks` adds the class-agnostic mask head, `low_quality` is as in
    `IoUMatcher`, of `batch_size_per_image` regions at most a quarter are objects. The box head's two FCs have
    `fc_width` channels (None: the text embeddings' width, as in F-ViT), both heads `num_convs` 3x3 convolutions of
    `conv_width`. `predictor` are arguments of `OpenVocabularyPredictor`.
    """
    names, strides = list(levels), tuple(levels.values())
    fc_width = fc_width or classifier.width
    norm = choose_norm(norm, may_be_empty=True)
    box_head = FastRCNNConvFCHead(
        ShapeSpec(channels=channels, height=7, width=7),
        conv_dims=[conv_width] * num_convs,
        fc_dims=[fc_width, fc_width],
        conv_norm=norm,
    )
    for layer in box_head.fcs:
        nn.init.xavier_uniform_(layer.weight)  # F-ViT's; detectron2's is wider
    mask_parts = {}
    if masks:
        mask_head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels, height=14, width=14),
            num_classes=1,
            conv_dims=[conv_width] * (num_convs + 1),
            conv_norm=norm,
        )
        nn.init.kaiming_normal_(mask_head.predictor.weight, mode="fan_out")  # mmdet's; detectron2's is near zero
        mask_parts = {
            "mask_in_features": names,
            "mask_pooler": PyramidRoIAlign(14, strides),
            "mask_head": mask_head,
        }
    return FViTRoIHeads(
        dense_stride=dense_stride,
        num_classes=classifier.num_classes,
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.25,
        proposal_matcher=IoUMatcher(0.5, 0.5, low_quality=low_quality, min_low_quality=0.5),
        box_in_features=names,
        box_pooler=PyramidRoIAlign(7, strides),
        box_head=box_head,
        box_predictor=OpenVocabularyPredictor(fc_width, classifier, **predictor),
        **mask_parts,
    )
