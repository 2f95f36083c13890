"""The proposal network: anchors, losses and proposals against plain versions; the norm in its head."""

import math

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from fvit.fvit_heads import ProposalHead, build_rpn
from torch.nn import functional as F

LEVELS = {"p2": 3.5, "p3": 7.0, "p4": 14.0, "p5": 28.0, "p6": 56.0}


def features(image_hw, batch=1, channels=8, levels=LEVELS):
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
    rpn = build_rpn(LEVELS, 8)
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


def test_head_with_norm():
    head = ProposalHead(8, 3, norm="BN")
    assert {"conv.conv0.weight", "conv.conv0.norm.running_mean", "objectness_logits.bias"} <= set(head.state_dict())
    assert "conv.conv0.bias" not in head.state_dict()
    plain = ProposalHead(8, 3)
    assert "conv.conv1.bias" in plain.state_dict()
    assert plain.conv.conv0.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_proposal_counts():
    rpn = build_rpn(LEVELS, 8, pre_nms_topk=(40, 20), post_nms_topk=(30, 10)).eval()
    images = ImageList(torch.zeros(1, 3, 112, 112), [(112, 100)])
    proposals, losses = rpn(images, features((112, 112)))
    assert losses == {}
    assert len(proposals[0]) == 10
    assert proposals[0].proposal_boxes.tensor[:, 2].max() <= 100  # clipped to the image without its padding
