"""Parts of detectron2 that are another here: F-ViT's norms, assignment, decoding and RoIAlign; images in a square.

And its model zoo's Mask R-CNN, with which both detectors begin.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import LazyConfig
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes, ImageList
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import roi_align


class RegionSyncBatchNorm(NaiveSyncBatchNorm):
    """detectron2's synchronised norm, weighted by samples, in float32.

    It takes the variance as a difference of two means; in bfloat16, which the convolution before it hands over under
    autocast, little or less than nothing would be left of it.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, stats_mode="N")

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, h, w] -> the same shape and type."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


def choose_norm(norm: str, may_be_empty: bool = False) -> str | Callable[[int], nn.Module]:
    """What detectron2's `get_norm` takes: any name as it is, "auto" as F-ViT's SyncBN wherever that can run.

    That is "BN" in one process or without NCCL, else "SyncBN"; or `RegionSyncBatchNorm` on regions, of which there
    may be none (`may_be_empty`: a mask head without objects), for inside detectron2's layers nn.SyncBatchNorm refuses
    an input without samples. The keys of the state dict are the same in all cases.
    """
    if norm != "auto":
        return norm
    if comm.get_world_size() == 1 or torch.distributed.get_backend() != "nccl":
        return "BN"
    return RegionSyncBatchNorm if may_be_empty else "SyncBN"


class IoUMatcher(Matcher):
    """Objects and boxes by overlap; low-quality matches have a floor and move the match, as in mmdet.

    A box is background below one IoU with its nearest object and an object from another one on; what lies between is
    ignored. With `low_quality` (F-ViT: for anchors, and for RoIs on LVIS) an object's best boxes are its own from an
    IoU of `min_low_quality` on, and are then matched to that object, also where they overlap another one more.
    """

    def __init__(self, negative_below: float, positive_from: float, low_quality: bool, min_low_quality: float) -> None:
        super().__init__([negative_below, positive_from], [0, -1, 1], allow_low_quality_matches=False)
        self.low_quality = low_quality
        self.min_low_quality = min_low_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """IoU [M objects, N boxes] -> long [N] index of the matched object, int8 [N] label: 1, 0, or -1 (ignored)."""
        matches, labels = super().__call__(match_quality_matrix)
        if self.low_quality and match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            is_best = (match_quality_matrix == best) & (best >= self.min_low_quality)
            number = torch.arange(1, len(is_best) + 1, dtype=torch.int32, device=is_best.device)
            owner = (is_best * number[:, None]).amax(dim=0)  # of several objects with the same best box, the last
            labels[owner > 0] = 1
            matches = torch.where(owner > 0, owner.long() - 1, matches)
        return matches, labels


class ClampedBoxTransform(Box2BoxTransform):
    """Box deltas whose log scales are clamped on both sides, to a factor of 1000 / 16; detectron2 clamps growth only.

    `stds` are the standard deviations of (dx, dy, dw, dh), the reciprocals of detectron2's weights.
    """

    def __init__(self, stds: Sequence[float]) -> None:
        super().__init__(tuple(1 / std for std in stds), math.log(1000.0 / 16))

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """[R, 4 K] deltas and [R, 4] xyxy boxes -> [R, 4 K] xyxy boxes, float32."""
        dx, dy, dw, dh = deltas.float().unflatten(1, (-1, 4)).unbind(-1)
        low_w, low_h = (-self.scale_clamp * weight for weight in self.weights[2:])
        clamped = torch.stack((dx, dy, dw.clamp(min=low_w), dh.clamp(min=low_h)), dim=-1)
        return super().apply_deltas(clamped.flatten(1), boxes)


def box_levels(boxes: Tensor, num_levels: int) -> Tensor:
    """Level of each box in [0, num_levels): floor(log2(sqrt(area) / 56 + 1e-6)), clamped (mmdet's rule).

    Boxes are [R, 4] xyxy in pixels of the network's input. detectron2 adds another epsilon, at another place.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    level = torch.floor(torch.log2(torch.sqrt(width * height) / 56 + 1e-6))
    return level.clamp(min=0, max=num_levels - 1).long()


class PyramidRoIAlign(nn.Module):
    """Regions of a pyramid, each from the level of its size; in float32 whatever the features are.

    detectron2's `ROIPooler` refuses the strides of a ViT with patch 14 (3.5, 7, 14, 28), which are no powers of two,
    and rounds coordinates to the features' dtype: in bfloat16, by pixels. `output_size` is the answer's side in cells,
    `strides` are the pixels per cell of each level, finest first.
    """

    def __init__(self, output_size: int, strides: Sequence[float]) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Levels [B, C, h, w], one per stride, and the boxes of B images -> [R, C, S, S] float32, images in order."""
        regions = convert_boxes_to_pooler_format(list(boxes)).float()
        levels = box_levels(regions[:, 1:], len(maps))
        size = self.output_size
        pooled = regions.new_zeros(len(regions), maps[0].shape[1], size, size)
        with torch.autocast(regions.device.type, enabled=False):
            for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
                mine = torch.nonzero(levels == level).squeeze(1)
                cells = roi_align(features.float(), regions[mine], size, 1 / stride, aligned=True)
                pooled = pooled.index_put((mine,), cells)
        return pooled


def zoo_model() -> Any:
    """The LazyConfig of the model zoo's Mask R-CNN on ViTDet; from its file, as detectron2.model_zoo warns."""
    configs = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    return LazyConfig.load(str(configs / "common" / "models" / "mask_rcnn_vitdet.py")).model


def zoo_rpn(
    levels: Mapping[str, float], channels: int, *, num_convs: int = 2, anchor_size: float = 8.0, **options: Any
) -> Any:
    """The LazyConfig of the zoo's proposal network over other pyramid levels (name -> stride in pixels).

    A place has three anchors, of the area of a square of `anchor_size` strides and of heights over widths of 0.5, 1 and
    2; their centres lie on the corners of the cells. `options` are detectron2's: of `batch_size_per_image` anchors at
    most half are objects; the best `pre_nms_topk` (training, test) of a level go through the NMS, the best
    `post_nms_topk` of an image are its proposals.
    """
    rpn, strides = zoo_model().proposal_generator, list(levels.values())
    rpn.update(in_features=list(levels), **options)
    rpn.head.update(in_channels=channels, conv_dims=[-1] * num_convs)
    rpn.anchor_generator.update(sizes=[[anchor_size * stride] for stride in strides], strides=strides)
    return rpn


class SquareDetector(GeneralizedRCNN):
    """`GeneralizedRCNN` on RGB images, whose backbone pads them to a square (see detectron2's `padding_constraints`).

    Inputs are detectron2's: "image" uint8 or float [3, H, W] RGB in 0-255, "instances" with gt_boxes, gt_classes and,
    with a mask head, gt_masks in training, "height" and "width" for the answer's size in test. Answers have
    pred_boxes, scores, pred_classes (places in `names`) and, with a mask head, pred_masks.

    Args:
        names: Its classes.
        about: What its weights are trained with, which a checkpoint records as "detector".
        belongs_to: What of that must be the same for weights to be loaded: part -> (what it is, what to do).
        described: What a result's record says of it, besides.
        parts: As `GeneralizedRCNN`.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        about: dict[str, Any],
        belongs_to: Mapping[str, tuple[str, str]],
        described: Mapping[str, Any],
        **parts: Any,
    ) -> None:
        super().__init__(**parts, input_format="RGB")
        self.names, self.about, self.belongs_to, self.described = tuple(names), about, belongs_to, described

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad with zeros, the mean colour, at the right and the bottom.

        ValueError: An image larger than the backbone's square, which detectron2 would cut without a word.
        """
        square = self.backbone.padding_constraints["square_size"]
        for sample in batched_inputs:
            if 0 < square < max(sample["image"].shape[1:]):
                raise ValueError(
                    f"image {sample.get('file_name', 'without name')} is {tuple(sample['image'].shape[1:])} (height, "
                    f"width), larger than the backbone's square_size {square}: resize it to fit, or set square_size=0"
                )
        return super().preprocess_image(batched_inputs)
