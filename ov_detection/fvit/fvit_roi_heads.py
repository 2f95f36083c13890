"""Region heads: detectron2's standard ones with F-ViT's poolers, text classifier and vision-language score."""

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvit.box_predictor import OpenVocabularyPredictor, Regions
from fvit.fvit_layers import IoUMatcher, PyramidRoIAlign, choose_norm
from fvit.text_classifier import TextClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align


def region_embeddings(dense: Tensor, boxes: Sequence[Boxes], stride: float) -> Tensor:
    """Vision-language feature of each box: the mean of the normalised dense map over it (RoIAlign 1x1), normalised.

    The map is [B, E, h, w] with `stride` pixels per cell, boxes are in pixels; the answer is [R, E] float32.
    """
    regions = convert_boxes_to_pooler_format(list(boxes)).float()
    return F.normalize(roi_align(dense.float(), regions, 1, 1 / stride, aligned=True).flatten(1), dim=1)


class FViTRoIHeads(StandardROIHeads):
    """`StandardROIHeads` whose test also looks at the dense vision-language map, on the proposals themselves.

    `dense_stride` is the pixels per cell of that map; the `box_predictor` is an `OpenVocabularyPredictor`. While
    `keep_regions` is a number, `regions` are those of the last batch in test, see `OpenVocabularyPredictor.regions`.
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
        found, kept = self.box_predictor.inference((self.box_predictor.scores(logits, cosines), deltas), proposals)
        if self.keep_regions is not None and cosines is not None:
            parts = (logits, deltas), cosines, proposals, kept, self.keep_regions
            self.regions = self.box_predictor.regions(*parts)
        return found


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
