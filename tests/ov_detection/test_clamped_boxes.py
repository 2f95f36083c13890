"""Box deltas against mmdet's formula in float64."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvit.fvit_layers import ClampedBoxTransform


def plain_decode(deltas, box, stds):
    """One box; the log scales are clamped to +-log(1000 / 16)."""
    (dx, dy, dw, dh), (x0, y0, x1, y1) = ([float(v) * s for v, s in zip(deltas, stds, strict=True)], box)
    limit = abs(math.log(16 / 1000))
    dw, dh = (min(max(size, -limit), limit) for size in (dw, dh))
    width, height = x1 - x0, y1 - y0
    x, y = (x0 + x1) / 2 + dx * width, (y0 + y1) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decode(stds):
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(50, 4, generator=generator) * 10  # many beyond the clamp on either side
    corners = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + torch.rand(50, 2, generator=generator) * 80 + 1], dim=1)
    ours = ClampedBoxTransform(stds).apply_deltas(deltas, boxes)
    expected = [plain_decode(delta, box, stds) for delta, box in zip(deltas.tolist(), boxes.tolist(), strict=True)]
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-2)


def test_encode_is_the_inverse_and_detectron2s():
    transform = ClampedBoxTransform([0.1, 0.1, 0.2, 0.2])  # a list, as a config gives it
    boxes, targets = torch.tensor([[10.0, 20, 50, 90]]), torch.tensor([[15.0, 18, 60, 80]])
    deltas = transform.get_deltas(boxes, targets)
    torch.testing.assert_close(deltas, Box2BoxTransform((10.0, 10, 5, 5)).get_deltas(boxes, targets))
    torch.testing.assert_close(transform.apply_deltas(deltas, boxes), targets)


def test_shrinking_is_clamped_where_detectron2_is_not():
    boxes, deltas = torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, -9, -9]])
    ours = ClampedBoxTransform((1, 1, 1, 1)).apply_deltas(deltas, boxes)
    theirs = Box2BoxTransform((1.0, 1, 1, 1)).apply_deltas(deltas, boxes)
    assert (ours[0, 2] - ours[0, 0]).item() == pytest.approx(16, rel=1e-3)
    assert (theirs[0, 2] - theirs[0, 0]).item() < 1


def test_several_boxes_per_region():
    transform = ClampedBoxTransform((0.1, 0.1, 0.2, 0.2))
    deltas, boxes = torch.randn(3, 8), torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    both = transform.apply_deltas(deltas, boxes)
    torch.testing.assert_close(both[:, 4:], transform.apply_deltas(deltas[:, 4:], boxes))
    assert transform.apply_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
