"""Region proposals: detectron2's RPN with F-ViT's head, anchors and assignment, and its mean over sampled anchors."""

from collections.abc import Sequence

import torch
from detectron2.layers import get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.structures import Boxes
from fvit.fvit_layers import ClampedBoxTransform, IoUMatcher, choose_norm
from torch import Tensor


class ProposalHead(StandardRPNHead):
    """detectron2's head of several convolutions (F-ViT: 2), with a norm after each where asked, and float32 answers."""

    def __init__(self, in_channels: int, num_anchors: int, num_convs: int = 2, norm: str = "") -> None:
        super().__init__(in_channels=in_channels, num_anchors=num_anchors, conv_dims=[-1] * num_convs)
        convs = [self.conv] if num_convs == 1 else list(self.conv)
        for conv in convs if norm else ():
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
    levels: dict[str, float],
    channels: int = 256,
    *,
    num_convs: int = 2,
    norm: str = "",
    batch_size_per_image: int = 256,
    pre_nms_topk: Sequence[int] = (2000, 2000),
    post_nms_topk: Sequence[int] = (1000, 1000),
) -> ProposalNetwork:
    """F-ViT's proposal network, a module with detectron2's RPN interface; defaults are OV-COCO's.

    A level (its name and stride in pixels) has three anchors per place, of the area of a square of 8 strides and of
    heights over widths of 0.5, 1 and 2; their centres lie on the corners of the cells. `norm` is "" on OV-COCO, "auto"
    on OV-LVIS. Of `batch_size_per_image` anchors at most half are objects. The best `pre_nms_topk` (training, test) of
    a level go through the NMS, the best `post_nms_topk` of an image are its proposals.
    """
    return ProposalNetwork(
        in_features=list(levels),
        head=ProposalHead(channels, 3, num_convs, choose_norm(norm)),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[8.0 * stride] for stride in levels.values()],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=list(levels.values()),
            offset=0.0,
        ),
        anchor_matcher=IoUMatcher(0.3, 0.7, low_quality=True, min_low_quality=0.3),
        box2box_transform=ClampedBoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_topk=tuple(pre_nms_topk),
        post_nms_topk=tuple(post_nms_topk),
        nms_thresh=0.7,
    )
