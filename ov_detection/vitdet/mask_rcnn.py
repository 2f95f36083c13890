"""Mask R-CNN on a plain ViT (ViTDet, Li et al., ECCV 2022), of detectron2's own parts: COCO's detection and masks.

`build_mask_rcnn` puts the detector together; a LazyConfig writes it as `L(build_mask_rcnn)(init=..., net=dict(...))`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.roi_heads import StandardROIHeads
from detectron2.solver.build import get_default_optimizer_params
from fvit.fvit_layers import SquareDetector
from torch import nn
from vitdet.host_backbone import FrozenHost, start_from

from last_vit.models import parse_model_argument
from last_vit.preprocessing import Preprocessing
from last_vit.weights import TrainedModel

_PATCH = 16  # pixels


class MaskRCNN(SquareDetector):
    """A detector of the classes `names`, whose backbone began as `source` (None: with random weights).

    Inputs and answers are detectron2's, as in `FViT`. The pixels' mean and std are those of the backbone's training
    and part of the state dict.
    """

    def __init__(self, names: Sequence[str], source: Mapping[str, str] | None, frozen: bool, **parts: Any) -> None:
        super().__init__(**parts, input_format="RGB")
        self.names, self.source, self.frozen = tuple(names), source, frozen
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, getattr(self, name), persistent=True)

    @property
    def belongs_to(self) -> dict[str, tuple[str, str]]:
        """See `SquareDetector`."""
        backbone = {"backbone": ("frozen backbone", "set model.init to its own")} if self.frozen else {}
        return {"names": ("set of classes", "give the images that it was trained for"), **backbone}

    @property
    def about(self) -> dict[str, Any]:
        """See `SquareDetector`."""
        return {"names": {str(label): name for label, name in enumerate(self.names)}, "backbone": self.source}

    @property
    def described(self) -> dict[str, Any]:
        """See `SquareDetector`."""
        return {"backbone": self.source, "frozen": self.frozen, "classes": len(self.names)}

    def take(self, about: Mapping[str, Any]) -> None:
        """See `SquareDetector`."""
        self.source = about.get("backbone", self.source)


def build_mask_rcnn(
    names: Sequence[str],
    *,
    init: str | None = None,
    frozen: bool = False,
    cache_images: int = 0,
    net: Mapping[str, Any] | None = None,
    square_size: int = 1024,
    channels: int = 256,
    scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
    norm: str = "LN",
    rpn: Mapping[str, Any] | None = None,
    roi_heads: Mapping[str, Any] | None = None,
) -> MaskRCNN:
    """A detector in training mode, with ViTDet's values for COCO where nothing is said.

    `init` is the trained backbone as a model text (`last_vit.models`), None for random weights. `net` are arguments of
    detectron2's `ViT`; with `frozen` the backbone is the model of `init` itself instead, of which `cache_images` are
    kept. Images are padded to `square_size` pixels. The pyramid has maps of `channels` at `scale_factors` times the
    patch grid, the last 0.5, and a coarser one for proposals. `norm` is that of the pyramid and the heads, `rpn` and
    `roi_heads` are arguments of `build_rpn` and `build_roi_heads` below.
    ValueError: A backbone that does not fit, or whose patches are not of 16 pixels, as the pyramid's levels are.
    """
    trained: TrainedModel | None = None
    if frozen:
        if init is None:
            raise ValueError("model.frozen needs model.init: a frozen backbone has to be some model, if @random")
        backbone = FrozenHost(init, square_size, cache_images)
        trained = backbone.trained
    else:
        own = {"img_size": square_size, "pretrain_use_cls_token": False, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
        backbone = ViT(**own, **(net or {}))
        trained = start_from(backbone, init) if init else None
    patch = backbone.output_shape()["last_feat"].stride
    if patch != _PATCH or square_size % (2 * _PATCH):
        raise ValueError(
            f"patches must be of {_PATCH} pixels and two of them fit square_size, got patches of {patch} and a "
            f"square_size of {square_size} pixels"
        )
    pyramid = SimpleFeaturePyramid(
        backbone, "last_feat", channels, tuple(scale_factors), LastLevelMaxPool(), norm, square_size
    )
    pixels = trained.preprocessing if trained else Preprocessing()
    levels = {name: shape.stride for name, shape in pyramid.output_shape().items()}
    return MaskRCNN(
        names,
        source=None if init is None else _source(init, trained),
        frozen=frozen,
        backbone=pyramid,
        proposal_generator=build_rpn(levels, channels, **(rpn or {})),
        roi_heads=build_roi_heads(len(names), levels, channels, norm, **(roi_heads or {})),
        pixel_mean=[255 * value for value in pixels.mean],
        pixel_std=[255 * value for value in pixels.std],
    )


def build_rpn(
    levels: Mapping[str, int],
    channels: int = 256,
    *,
    num_convs: int = 2,
    anchor_size: float = 8.0,
    batch_size_per_image: int = 256,
    pre_nms_topk: Sequence[int] = (2000, 1000),
    post_nms_topk: Sequence[int] = (1000, 1000),
) -> RPN:
    """detectron2's proposal network over pyramid levels (name -> stride in pixels).

    A place has anchors of the area of a square of `anchor_size` strides in three shapes. Of `batch_size_per_image`
    anchors at most half are objects. The best `pre_nms_topk` (training, test) of a level go through the NMS, the best
    `post_nms_topk` of an image are its proposals.
    """
    return RPN(
        in_features=list(levels),
        head=StandardRPNHead(in_channels=channels, num_anchors=3, conv_dims=[-1] * num_convs),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[anchor_size * stride] for stride in levels.values()],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=list(levels.values()),
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_topk=tuple(pre_nms_topk),
        post_nms_topk=tuple(post_nms_topk),
        nms_thresh=0.7,
    )


def build_roi_heads(
    num_classes: int,
    levels: Mapping[str, int],
    channels: int = 256,
    norm: str = "LN",
    *,
    masks: bool = True,
    batch_size_per_image: int = 512,
    fc_width: int = 1024,
    num_convs: int = 4,
    conv_width: int = 256,
    canonical_box: int = 224,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_image: int = 100,
) -> StandardROIHeads:
    """detectron2's region heads on all levels but the coarsest, with ViTDet's box head of convolutions and one FC.

    Of `batch_size_per_image` regions at most a quarter are objects. Both heads have `num_convs` 3x3 convolutions of
    `conv_width`, the box head an FC of `fc_width` channels. A region of the area of a square of `canonical_box` pixels
    is read at the patch grid's stride, smaller and larger ones at finer and coarser levels. Without `masks` it is
    Faster R-CNN.
    """
    names, scales = list(levels)[:-1], [1 / stride for stride in list(levels.values())[:-1]]
    widths = [conv_width] * num_convs

    def pooled(size: int) -> tuple[ROIPooler, ShapeSpec]:
        pooler = ROIPooler(size, scales, 0, "ROIAlignV2", canonical_box)
        return pooler, ShapeSpec(channels=channels, height=size, width=size)

    box_pooler, shape = pooled(7)
    box_head = FastRCNNConvFCHead(shape, conv_dims=widths, fc_dims=[fc_width], conv_norm=norm)
    mask_parts: dict[str, Any] = {}
    if masks:
        mask_pooler, mask_shape = pooled(14)
        head = MaskRCNNConvUpsampleHead(
            mask_shape, num_classes=num_classes, conv_dims=[*widths, conv_width], conv_norm=norm
        )
        mask_parts = {"mask_in_features": names, "mask_pooler": mask_pooler, "mask_head": head}
    return StandardROIHeads(
        num_classes=num_classes,
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=names,
        box_pooler=box_pooler,
        box_head=box_head,
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=fc_width),
            box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
            num_classes=num_classes,
            test_score_thresh=score_thresh,
            test_nms_thresh=nms_thresh,
            test_topk_per_image=detections_per_image,
        ),
        **mask_parts,
    )


def vitdet_params(lr: float, layer_decay: float, depth: int, model: nn.Module | None = None) -> list[dict[str, Any]]:
    """Groups of parameters whose learning rate falls by `layer_decay` with every block of a backbone of `depth`.

    Norms and position embeddings are left out of the weight decay. The trainer adds the model.
    """
    return get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay_norm=0.0,
        overrides={"pos_embed": {"weight_decay": 0.0}},
        lr_factor_func=partial(get_vit_lr_decay_rate, lr_decay_rate=layer_decay, num_layers=depth),
    )


def _source(init: str, trained: TrainedModel) -> dict[str, str]:
    """What a backbone began as: the spec of its text, and its weights' hash or seed."""
    argument = parse_model_argument(init)
    return {"model": argument.spec, "weights": trained.checkpoint_sha256 or f"random, seed {argument.seed}"}
