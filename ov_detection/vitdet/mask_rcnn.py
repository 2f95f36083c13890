"""Mask R-CNN on a plain ViT (ViTDet, Li et al., ECCV 2022), as detectron2's model zoo has it: COCO's boxes and masks.

`build_mask_rcnn` puts the detector together; a LazyConfig writes it as `L(build_mask_rcnn)(init=..., net=dict(...))`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from fvit.fvit_layers import SquareDetector, zoo_model, zoo_rpn
from torch import nn
from vitdet.host_backbone import FrozenHost, start_from

from last_vit.models import parse_model_argument
from last_vit.preprocessing import Preprocessing
from last_vit.weights import TrainedModel

_PATCH = 16  # pixels


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
    rpn: Mapping[str, Any] | None = None,
    roi_heads: Mapping[str, Any] | None = None,
) -> SquareDetector:
    """A detector of the classes `names` in training mode, with ViTDet's values for COCO where nothing is said.

    `init` is the trained backbone as a model text (`last_vit.models`), None for random weights. `net` are arguments of
    detectron2's `ViT`; with `frozen` the backbone is the model of `init` itself instead, of which `cache_images` are
    kept. Images are padded to `square_size` pixels; their mean and std are those of the backbone's training and part of
    the state dict. The pyramid has maps of `channels` at `scale_factors` times the patch grid, the last 0.5, and a
    coarser one for proposals. `rpn` and `roi_heads` are arguments of `zoo_rpn` and of `_set_roi_heads` below.
    ValueError: A backbone that does not fit, or whose patches are not of 16 pixels, as the pyramid's levels are.
    """
    zoo = zoo_model()
    trained: TrainedModel | None = None
    if frozen:
        if init is None:
            raise ValueError("model.frozen needs model.init: a frozen backbone has to be some model, if @random")
        backbone = FrozenHost(init, square_size, cache_images)
        trained = backbone.trained
    else:
        own = {"img_size": square_size, "pretrain_use_cls_token": False, **(net or {})}
        backbone = instantiate({**zoo.backbone.net, **own})
        trained = start_from(backbone, init) if init else None
    patch = backbone.output_shape()["last_feat"].stride
    if patch != _PATCH or square_size % (2 * _PATCH):
        raise ValueError(
            f"patches must be of {_PATCH} pixels and two of them fit square_size, got patches of {patch} and a "
            f"square_size of {square_size} pixels"
        )
    sizes = {"out_channels": channels, "scale_factors": tuple(scale_factors), "square_pad": square_size}
    pyramid = instantiate({**zoo.backbone, "net": backbone, **sizes})
    levels = {name: shape.stride for name, shape in pyramid.output_shape().items()}
    _set_roi_heads(zoo.roi_heads, levels, channels, num_classes=len(names), **(roi_heads or {}))
    pixels = trained.preprocessing if trained else Preprocessing()
    detector = SquareDetector(
        names,
        about={
            "names": {str(label): name for label, name in enumerate(names)},
            "backbone": None if init is None else _source(init, trained),
        },
        belongs_to={
            "names": ("set of classes", "give the images that it was trained for"),
            **({"backbone": ("frozen backbone", "set model.init to its own")} if frozen else {}),
        },
        described={"frozen": frozen, "classes": len(names)},
        backbone=pyramid,
        proposal_generator=instantiate(zoo_rpn(levels, channels, **(rpn or {}))),
        roi_heads=instantiate(zoo.roi_heads),
        pixel_mean=[255 * value for value in pixels.mean],
        pixel_std=[255 * value for value in pixels.std],
    )
    for name in ("pixel_mean", "pixel_std"):
        detector.register_buffer(name, getattr(detector, name), persistent=True)
    return detector


def _set_roi_heads(
    heads: Any,
    levels: Mapping[str, int],
    channels: int,
    *,
    masks: bool = True,
    fc_width: int = 1024,
    num_convs: int = 4,
    conv_width: int = 256,
    canonical_box: int = 224,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_image: int = 100,
    **options: Any,
) -> None:
    """The zoo's region heads on all levels but the coarsest.

    Both heads have 3x3 convolutions of `conv_width`, the box head `num_convs` and an FC of `fc_width` channels, the
    mask head one more. A region of the area of a square of `canonical_box` pixels is read at the patch grid's stride,
    smaller and larger ones at finer and coarser levels. Without `masks` it is Faster R-CNN. `options` are detectron2's.
    """
    names, scales = list(levels)[:-1], [1 / stride for stride in list(levels.values())[:-1]]
    heads.update(box_in_features=names, mask_in_features=names, **options)
    for kind, size, convs in (("box", 7, num_convs), ("mask", 14, num_convs + 1)):
        shape = ShapeSpec(channels=channels, height=size, width=size)
        heads[f"{kind}_pooler"].update(scales=scales, canonical_box_size=canonical_box)
        heads[f"{kind}_head"].update(input_shape=shape, conv_dims=[conv_width] * convs)
    heads.box_head.fc_dims = [fc_width]
    heads.box_predictor.update(input_shape=ShapeSpec(channels=fc_width), test_score_thresh=score_thresh)
    heads.box_predictor.update(test_nms_thresh=nms_thresh, test_topk_per_image=detections_per_image)
    if not masks:
        heads.update(dict.fromkeys(("mask_in_features", "mask_pooler", "mask_head")))
    heads.box_predictor = heads.pop("box_predictor")  # drawn last, as where the rows of docs/results.md began


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
