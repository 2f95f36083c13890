"""From the features of a region to its class and its box: F-ViT's two branches behind detectron2's interface.

A region has two scores per class, the detector's and the vision-language model's, fused as geometric means:

    base classes, background:  p_det^(1 - alpha) * p_vlm^alpha
    novel classes:             p_det^(1 - beta)  * p_vlm^beta

"f-vit" leaves it there, so a row does not sum to 1. "f-vlm" takes the background from the detector alone and divides
each row by its sum (F-VLM, arXiv:2209.15639).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from class_embeddings import ClassEmbeddings
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference_single_image
from detectron2.structures import Instances
from fvit.fvit_layers import ClampedBoxTransform
from torch import Tensor, nn
from torch.nn import functional as F

FUSIONS = ("f-vit", "f-vlm")


class Regions(NamedTuple):
    """What the detections of an image are chosen from: R regions, C classes and the background, which is last."""

    boxes: Tensor  # float32 [R, 4], x1 y1 x2 y2 as regressed, in pixels of the network's input
    det_logits: Tensor  # float32 [R, C + 1]
    cosines: Tensor | None  # float32 [R, C + 1], of the vision-language features; None: the detector scores alone
    input_size: tuple[int, int]  # height, width
    is_complete: bool = True  # whether these are all regions of the image

    def select(self, kept: Tensor, others: int, vlm_temperature: float) -> "Regions":
        """Those at the places `kept`, and so many others, those of either branch's highest score; on the CPU."""
        both = self.det_logits.log_softmax(dim=1), (self.cosines * vlm_temperature).log_softmax(dim=1)
        best = torch.maximum(*both)[:, :-1].amax(dim=1)
        best[kept] = torch.inf
        most = len(kept.unique()) + others
        chosen = best.topk(min(most, len(best))).indices.sort().values  # in the order that breaks ties
        parts = [part[chosen].float().cpu() for part in self[:3]]
        return Regions(*parts, self.input_size, most >= len(best))


def fuse_scores(
    det_logits: Tensor, vlm_logits: Tensor, is_base: Tensor, alpha: float, beta: float, fusion: str = "f-vit"
) -> Tensor:
    """Class scores of regions [R, C + 1] in [0, 1]; both softmaxes run over all classes and the background.

    Logits are float32 [R, C + 1], background last: cosines of either features times temperature. `is_base` is bool [C],
    the classes that the detector was trained with; `alpha` and `beta` are the weights of the vision-language score for
    these and for all others, in [0, 1]. Other weights, or a fusion that is not of FUSIONS, are a ValueError.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    weight = torch.where(F.pad(is_base, (0, 1), value=True), alpha, beta).to(det_logits)
    log_det = det_logits.log_softmax(dim=-1)
    log_fused = torch.lerp(log_det, vlm_logits.log_softmax(dim=-1), weight)
    if fusion == "f-vit":
        return log_fused.exp()
    return torch.cat([log_fused[:, :-1], log_det[:, -1:]], dim=1).softmax(dim=-1)


def detect_in(regions: Regions, is_base: Tensor, scoring: Mapping[str, Any]) -> tuple[Instances, Tensor]:
    """The detections of an image, in its input's pixels, and the places of their regions.

    `scoring` is that of an `OpenVocabularyPredictor`, whose temperature the logits have, or another.
    """
    logits = regions.det_logits
    if scoring["det_temperature"] != scoring["trained_temperature"]:
        logits = logits * (scoring["det_temperature"] / scoring["trained_temperature"])
    scores = logits.softmax(dim=1)
    if regions.cosines is not None:
        fusion = {name: scoring[name] for name in ("alpha", "beta", "fusion")}
        scores = fuse_scores(logits, regions.cosines * scoring["vlm_temperature"], is_base, **fusion)
    limits = (scoring[name] for name in ("score_thresh", "nms_thresh", "detections_per_image"))
    return fast_rcnn_inference_single_image(regions.boxes.clone(), scores, regions.input_size, *limits)


class TextClassifier(nn.Module):
    """Scores of C classes and the background, for any C: cosine to the embedding of each name, times a temperature.

    The vocabulary is an input, not a weight: no checkpoint holds it, and it can be another one at every test.
    Classes that are base (bool [C]) have boxes in training; the others are novel: they have no weight in the loss and
    do not compete there, or base classes would learn to outvote them (F-ViT). Base classes have weight 1, the
    background `background_weight`. `width` is E, of the CLIP features that are compared with the embeddings;
    `temperature` is the start of the cosines' learned factor, `fixed_temperature` a factor in its place.
    `zero_background` scores the background 0, as Detic does, for embeddings without one.
    ValueError: Another width, no background, an `is_base` of other classes, a background without weight.
    """

    def __init__(
        self,
        vocabulary: ClassEmbeddings,
        is_base: Tensor,
        width: int,
        *,
        temperature: float = 50.0,
        fixed_temperature: float | None = None,
        background_weight: float = 0.6,
        zero_background: bool = False,
    ) -> None:
        super().__init__()
        if background_weight <= 0:
            raise ValueError(f"background_weight must be above 0, got {background_weight}")
        if vocabulary.width != width:
            raise ValueError(
                f"the class embeddings have {vocabulary.width} numbers (text tower: {vocabulary.tower}), features of "
                f"this detector's CLIP have {width}: build them with that CLIP's own text tower, "
                "ov_detection/build_class_embeddings.py --model ..."
            )
        background = torch.zeros(width) if zero_background else vocabulary.background
        if background is None:
            raise ValueError(
                f"these class embeddings (tower: {vocabulary.tower}) have none for the background: build them with "
                "ov_detection/build_class_embeddings.py, which adds it, or train with classifier zero_background=True"
            )
        if is_base.shape != (len(vocabulary),) or is_base.dtype != torch.bool:
            raise ValueError(
                f"is_base must be bool [{len(vocabulary)}], one per class, got {is_base.dtype} {list(is_base.shape)}"
            )
        self.width, self.num_classes = width, len(vocabulary)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)), requires_grad=fixed_temperature is None)
        self.fixed_temperature = fixed_temperature
        weights = F.pad(is_base.float(), (0, 1), value=background_weight)
        self.register_buffer("text", torch.cat([vocabulary.embeddings, background[None]]), persistent=False)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("is_base", is_base, persistent=False)

    @property
    def factor(self) -> Tensor | float:
        """Of the cosines, learned or fixed."""
        return self.temperature if self.fixed_temperature is None else self.fixed_temperature

    def cosines(self, features: Tensor) -> Tensor:
        """[R, E] of any length and dtype -> float32 [R, C + 1], background last."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 cosines times 50 are off by tenths
            return F.normalize(features.float(), dim=1) @ self.text.T

    def forward(self, features: Tensor) -> Tensor:
        """[R, E] -> logits, float32 [R, C + 1], background last."""
        return self.cosines(features) * self.factor

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross entropy: the sum of weight times loss, over the number of regions; 0 for none.

        Args:
            logits: [R, C + 1] float32.
            labels: long [R] in [0, C]; C is background. A region of a novel class adds 0.

        Raises:
            ValueError: A label outside [0, C].
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise ValueError(
                f"object labels go from {int(labels.min())} to {int(labels.max())}, the vocabulary has "
                f"{self.num_classes} classes: data set and class embeddings must list the same ones"
            )
        log_scores = logits.masked_fill(self.class_weights == 0, -torch.inf).log_softmax(dim=1)
        weights = self.class_weights[labels]
        losses = -log_scores.gather(1, labels[:, None]).squeeze(1)
        return (weights * losses.masked_fill(weights == 0, 0)).sum() / max(len(labels), 1)


class OpenVocabularyPredictor(FastRCNNOutputLayers):
    """A branch per question: FC and ReLU, then text classifier, or one box for all classes.

    F-ViT takes the class feature after the ReLU, so it has no negative channel; its authors call that a mistake and
    keep it, and so does this class. `width` is that of the box head's features, `vlm_temperature` the factor of the
    vision-language cosines; defaults are OV-COCO's.
    """

    def __init__(
        self,
        width: int,
        classifier: TextClassifier,
        *,
        vlm_temperature: float = 75.0,
        alpha: float = 0.1,
        beta: float = 0.8,
        fusion: str = "f-vit",
        score_thresh: float = 0.01,
        nms_thresh: float = 0.4,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(
            ShapeSpec(channels=width),
            box2box_transform=ClampedBoxTransform((0.1, 0.1, 0.2, 0.2)),
            num_classes=classifier.num_classes,
            cls_agnostic_bbox_reg=True,
            test_score_thresh=score_thresh,
            test_nms_thresh=nms_thresh,
            test_topk_per_image=detections_per_image,
        )
        del self.cls_score  # the text classifies
        self.classifier = classifier
        self.cls_fc = nn.Linear(width, classifier.width)
        self.reg_fc = nn.Linear(width, width)
        for layer in (self.cls_fc, self.reg_fc):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.vlm_temperature = vlm_temperature
        self.fusion = {"alpha": alpha, "beta": beta, "fusion": fusion}
        fuse_scores(torch.zeros(0, 2), torch.zeros(0, 2), torch.ones(1, dtype=torch.bool), **self.fusion)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, width] -> class logits [R, C + 1] and box deltas [R, 4], both float32."""
        logits = self.classifier(self.cls_fc(x).relu())
        return logits, self.bbox_pred(self.reg_fc(x).relu()).float()

    def scoring(self) -> dict[str, Any]:
        """The settings that `detect_in` takes."""
        names = "score_thresh", "nms_thresh", "detections_per_image"
        limits = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        trained = torch.as_tensor(self.classifier.factor).item()
        temperatures = {"vlm_temperature": self.vlm_temperature, "det_temperature": trained}
        return {**self.fusion, **temperatures, "trained_temperature": trained, **dict(zip(names, limits, strict=True))}

    def regions(
        self, predictions: tuple[Tensor, Tensor], cosines: Tensor | None, proposals: list[Instances]
    ) -> list[Regions]:
        """Those of each image, of what `forward` gave and the vision-language cosines [R, C + 1]."""
        counts = [len(image) for image in proposals]
        cosines_of = [None] * len(counts) if cosines is None else cosines.split(counts)
        columns = self.predict_boxes(predictions, proposals), predictions[0].split(counts), cosines_of
        return [Regions(*parts, image.image_size) for *parts, image in zip(*columns, proposals, strict=True)]

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Weighted class loss "loss_cls"; "loss_box_reg", L1 on the deltas of objects over the number of regions."""
        loss_cls = self.classifier.loss(predictions[0], torch.cat([image.gt_classes for image in proposals]))
        return {**super().losses(predictions, proposals), "loss_cls": loss_cls}
