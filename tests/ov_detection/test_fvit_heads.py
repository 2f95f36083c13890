"""Region heads and proposals: text classifier, fusion, boxes, anchors, losses, detections, against plain versions."""

import math

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from fvit.box_predictor import OpenVocabularyPredictor, TextClassifier, fuse_scores
from fvit.fvit_heads import build_roi_heads, build_rpn, region_embeddings
from fvit_parts import BASE, roi_align64, vocabulary
from torch.nn import functional as F

LEVELS = {"p2": 4.0, "p3": 8.0, "p4": 16.0, "p5": 32.0}
FUSED_BASE = torch.tensor([True, False, True, False, False])


def plain_loss(logits, labels, weights):
    """Sum over regions of weight times cross entropy over classes that have weight, over the number of regions."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        if weights[label]:
            scores = [math.exp(value - max(row)) for value, weight in zip(row, weights, strict=True) if weight]
            total += weights[label] * -math.log(math.exp(row[label] - max(row)) / sum(scores))
    return total / max(len(labels), 1)


def classifier(words=None, is_base=BASE, **options):
    return TextClassifier(words or vocabulary(), torch.tensor(is_base), 8, **options)


def test_logits_are_cosines_times_temperature():
    words, features = vocabulary(), torch.randn(6, 8)
    model = classifier(words)
    logits = model(features)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    text = torch.cat([words.embeddings, words.background[None]]).double()
    torch.testing.assert_close(logits.double(), 50 * unit @ text.T, rtol=1e-5, atol=1e-5)
    assert logits.shape == (6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(features), logits)
    assert list(model.state_dict()) == ["temperature"]
    logits.sum().backward()
    assert model.temperature.grad.abs() > 0
    fixed = classifier(words, fixed_temperature=25.0)
    torch.testing.assert_close(fixed(features), logits / 2)
    assert not fixed.temperature.requires_grad


@pytest.mark.parametrize("background", [0.6, 0.9])
def test_class_loss(background):
    model = classifier(background_weight=background)
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.tensor([0, 1, 2, 4, 4] * 4)
    expected = plain_loss(logits, labels, [1, 1, 1, 0, background])
    assert model.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_novel_classes_do_not_compete_and_add_nothing():
    model = classifier()
    logits = torch.randn(3, 5, requires_grad=True)
    loss = model.loss(logits, torch.tensor([0, 3, 4]))  # the second region is novel
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad[:, 3].abs().sum() == 0
    assert logits.grad[1].abs().sum() == 0
    assert model.loss(logits, torch.tensor([3, 3, 3])).item() == 0
    assert model.loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).item() == 0


@pytest.mark.parametrize(
    ("words", "is_base", "options", "match"),
    [
        (vocabulary(width=6), BASE, {}, "have 6 numbers"),
        (vocabulary(background=False), BASE, {}, "zero_background=True"),
        (vocabulary(), BASE[:2], {}, r"bool \[4\]"),
        (vocabulary(), BASE, {"background_weight": 0.0}, "background_weight must be above 0"),
    ],
)
def test_text_that_does_not_fit(words, is_base, options, match):
    with pytest.raises(ValueError, match=match):
        classifier(words, is_base, **options)
    with pytest.raises(ValueError, match=r"go from 0 to 7, the vocabulary has 4"):
        classifier().loss(torch.randn(2, 5), torch.tensor([0, 7]))


def test_a_background_without_embedding_scores_zero():
    features = torch.randn(6, 8)
    for words in (vocabulary(background=False), vocabulary()):
        logits = classifier(words, zero_background=True)(features)
        assert (logits[:, -1] == 0).all()
        torch.testing.assert_close(logits[:, :-1], classifier()(features)[:, :-1])


def random_logits(seed, rows=40):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, 6, generator=generator) * 2 - 1) * 75


def plain_fusion(det, vlm, alpha, beta, fusion, base=FUSED_BASE):
    """The background stands last; it counts as a base class, or for F-VLM as the detector sees it."""
    det, vlm = det.double().softmax(1), vlm.double().softmax(1)
    weight = torch.tensor([*(alpha if is_base else beta for is_base in base), 0 if fusion == "f-vlm" else alpha])
    out = det ** (1 - weight) * vlm**weight
    return out / out.sum(dim=1, keepdim=True) if fusion == "f-vlm" else out


@pytest.mark.parametrize("fusion", ["f-vit", "f-vlm"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.8), (0.35, 0.65), (0.2, 0.2), (0.0, 1.0)])
def test_fusion_against_float64(fusion, alpha, beta):
    det, vlm = random_logits(0), random_logits(1)
    ours = fuse_scores(det, vlm, FUSED_BASE, alpha, beta, fusion)
    torch.testing.assert_close(ours.double(), plain_fusion(det, vlm, alpha, beta, fusion), rtol=2e-4, atol=1e-12)
    assert torch.allclose(ours.sum(dim=1), torch.ones(40)) == (fusion == "f-vlm")
    far = torch.tensor([[500.0, -500, 0, 0, 0, 0]])
    assert fuse_scores(far, -far, FUSED_BASE, alpha, beta, fusion).isfinite().all()
    for wrong, match in (((0.1, 0.8, "mean"), "f-vit, f-vlm"), ((1.5, 0.8), "alpha must"), ((0.1, -0.1), "beta must")):
        with pytest.raises(ValueError, match=match):
            fuse_scores(det, vlm, FUSED_BASE, *wrong)


def predictor(**options):
    torch.manual_seed(0)
    return OpenVocabularyPredictor(12, classifier(), **options)


def region_heads(**options):
    torch.manual_seed(0)
    small = {"conv_width": 8, "num_convs": 2, "norm": "BN", "score_thresh": 0.0}
    return build_roi_heads(classifier(), LEVELS, 16, 8, **{**small, **options})


def pyramid(batch=1, side=128):
    generator = torch.Generator().manual_seed(3)
    maps = {n: torch.randn(batch, 8, int(side / s), int(side / s), generator=generator) for n, s in LEVELS.items()}
    return {**maps, "dense": F.normalize(torch.randn(batch, 8, side // 16, side // 16, generator=generator), dim=1)}


def regions(boxes, image_hw=(128, 128), **fields):
    instances = Instances(image_hw)
    instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.objectness_logits = torch.zeros(len(instances.proposal_boxes))
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def test_mask_logits_start_as_mmdets():
    """Kaiming's over the one output: a deviation of sqrt(2), where detectron2 has 0.001."""
    logits = region_heads(masks=True, conv_width=512, num_convs=0).mask_head.predictor
    assert logits.weight.std().item() == pytest.approx(math.sqrt(2), rel=0.1)
    assert logits.bias.tolist() == [0]


def test_both_branches_end_in_a_relu():
    model = predictor()
    x = torch.randn(5, 12)
    logits, deltas = model(x)
    seen = (x @ model.cls_fc.weight.T + model.cls_fc.bias).clamp(min=0)
    torch.testing.assert_close(logits, model.classifier(seen))
    hidden = (x @ model.reg_fc.weight.T + model.reg_fc.bias).clamp(min=0)
    torch.testing.assert_close(deltas, hidden @ model.bbox_pred.weight.T + model.bbox_pred.bias)
    assert deltas.shape == (5, 4)
    assert not any(name.startswith("cls_score") for name, _ in model.named_parameters())


def test_box_loss_is_l1_over_all_regions():
    model = predictor()
    labels = torch.tensor([0, 4, 2, 4])
    boxes = [[10.0, 10, 50, 40], [0, 0, 30, 30], [20, 30, 90, 100], [5, 5, 25, 25]]
    targets = [[12.0, 8, 60, 44], [0, 0, 1, 1], [25, 20, 80, 110], [0, 0, 1, 1]]
    logits, deltas = torch.randn(4, 5), torch.randn(4, 4)
    image = regions(boxes, gt_classes=labels, gt_boxes=Boxes(torch.tensor(targets)))
    with EventStorage():
        losses = model.losses((logits, deltas), [image])
    expected = 0.0
    for place in (0, 2):
        (x0, y0, x1, y1), (u0, v0, u1, v1) = (torch.tensor(side[place]).double() for side in (boxes, targets))
        w, h = x1 - x0, y1 - y0
        target = [(u0 + u1 - x0 - x1) / 2 / w / 0.1, (v0 + v1 - y0 - y1) / 2 / h / 0.1]
        target += [((u1 - u0) / w).log() / 0.2, ((v1 - v0) / h).log() / 0.2]
        expected += (deltas[place].double() - torch.stack(target)).abs().sum().item()
    assert losses["loss_box_reg"].item() == pytest.approx(expected / 4, rel=1e-5)
    assert losses["loss_cls"].item() == pytest.approx(model.classifier.loss(logits, labels).item())


@pytest.mark.parametrize("stride", [16, 14])
def test_region_embeddings(stride):
    dense = pyramid(2)["dense"]
    boxes = [Boxes(torch.tensor([[0.0, 0, 128, 128], [20, 30, 61, 47]])), Boxes(torch.tensor([[100.0, 3, 127, 120]]))]
    ours = region_embeddings(dense, boxes, stride)
    expected = []
    for image, part in enumerate(boxes):
        for box in part.tensor:
            mean = roi_align64(dense[image].double(), box.tolist(), 1, stride).flatten()
            expected.append(mean / mean.norm())
    torch.testing.assert_close(ours.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["f-vit", "f-vlm"])
def test_detections_have_the_fused_scores_of_their_proposals(fusion):
    """Scores come from the proposal, not from the refined box; the background takes part and is left out."""
    options = {"vlm_temperature": 9.0, "alpha": 0.3, "beta": 0.7, "fusion": fusion}
    heads = region_heads(**options, nms_thresh=1.0, detections_per_image=1000).eval()
    maps = pyramid()
    proposals = regions([[10, 10, 60, 50], [30, 20, 120, 110], [80, 70, 100, 90]])
    with torch.no_grad():
        found, _ = heads(None, maps, [proposals])
        pooled = heads.box_pooler([maps[name] for name in LEVELS], [proposals.proposal_boxes])
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
    seen = region_embeddings(maps["dense"], [proposals.proposal_boxes], 16).double()
    text = heads.box_predictor.classifier.text.double()
    fused = plain_fusion(logits, 9.0 * seen @ text.T, 0.3, 0.7, fusion, BASE)
    expected = fused[:, :4].flatten().sort(descending=True).values
    torch.testing.assert_close(found[0].scores.double(), expected, rtol=1e-4, atol=1e-9)
    assert sorted(found[0].pred_classes.tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    best = fused[:, :4].flatten().argmax().item()
    box = heads.box_predictor.box2box_transform.apply_deltas(deltas, proposals.proposal_boxes.tensor)[best // 4]
    torch.testing.assert_close(found[0].pred_boxes.tensor[0], box.clamp(0, 128))
    assert found[0].pred_classes[0] == best % 4


RPN_LEVELS = {"p2": 3.5, "p3": 7.0, "p4": 14.0, "p5": 28.0, "p6": 56.0}


def features(image_hw, batch=1, channels=8, levels=RPN_LEVELS):
    generator = torch.Generator().manual_seed(0)
    sizes = [(math.ceil(image_hw[0] / stride), math.ceil(image_hw[1] / stride)) for stride in levels.values()]
    return {
        name: torch.randn(batch, channels, *size, generator=generator) for name, size in zip(levels, sizes, strict=True)
    }


def objects(image_hw, boxes):
    instances = Instances(image_hw)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


def test_anchors():
    rpn = build_rpn(RPN_LEVELS, 8)
    maps = features((112, 84))
    anchors = rpn.anchor_generator(list(maps.values()))
    expected = []
    for y in range(8):
        for x in range(6):
            for ratio in (0.5, 1.0, 2.0):  # height over width, at equal area
                width, height = 8 * 14 / math.sqrt(ratio), 8 * 14 * math.sqrt(ratio)
                expected.append([x * 14 - width / 2, y * 14 - height / 2, x * 14 + width / 2, y * 14 + height / 2])
    torch.testing.assert_close(anchors[2].tensor, torch.tensor(expected))
    assert [len(level) for level in anchors] == [3 * m.shape[2] * m.shape[3] for m in maps.values()]


def plain_losses(logits, deltas, labels, boxes, anchors):
    """Mean over all sampled anchors of the batch: BCE of each, and L1 of the deltas of the objects, in float64."""
    labels, logits, deltas = torch.cat(labels), logits.flatten().double(), deltas.flatten(0, 1).double()
    sampled, is_object = labels >= 0, labels == 1
    cls = F.binary_cross_entropy_with_logits(logits[sampled], labels[sampled].double(), reduction="sum")
    (a0, a1), (g0, g1) = (corners.double()[is_object].split(2, dim=1) for corners in (anchors.repeat(2, 1), boxes))
    target = torch.cat([(g0 + g1 - a0 - a1) / 2 / (a1 - a0), ((g1 - g0) / (a1 - a0)).log()], dim=1)
    reg = (deltas[is_object] - target).abs().sum()
    return cls / sampled.sum(), reg / sampled.sum(), sampled.sum()


@pytest.mark.parametrize("few", [True, False])
def test_losses(few):
    """Few anchors: less than 256 can be sampled from two small images, and detectron2 would divide by 512."""
    levels = {"p4": 16.0} if few else {"p3": 8.0}
    torch.manual_seed(0)
    rpn = build_rpn(levels, 8).train()
    image_hw = (128, 160)
    maps = features(image_hw, batch=2, levels=levels)
    targets = [objects(image_hw, [[10, 20, 90, 100], [60, 60, 130, 120]]), objects(image_hw, [])]
    images = ImageList(torch.zeros(2, 3, *image_hw), [image_hw, image_hw])
    with EventStorage():
        torch.manual_seed(1)
        proposals, losses = rpn(images, maps, targets)
    anchors = rpn.anchor_generator(list(maps.values()))
    torch.manual_seed(1)
    labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
    logits, deltas = rpn.rpn_head(list(maps.values()))
    logits = logits[0].permute(0, 2, 3, 1).flatten(1)
    deltas = deltas[0].unflatten(1, (3, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
    boxes = torch.cat([boxes[0], torch.zeros_like(boxes[0])])  # the second image has no object
    cls, reg, sampled = plain_losses(logits, deltas, labels, boxes, anchors[0].tensor)
    assert losses["loss_rpn_cls"].item() == pytest.approx(cls.item(), rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(reg.item(), rel=1e-4)
    assert (sampled < 512) == few
    assert reg > 0
    assert all((image.objectness_logits[:-1] >= image.objectness_logits[1:]).all() for image in proposals)
