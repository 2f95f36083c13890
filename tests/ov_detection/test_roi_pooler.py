"""Pyramid RoIAlign against a float64 version point by point, and against detectron2's pooler where both are defined."""

import math

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from fvit.fvit_layers import PyramidRoIAlign, box_levels
from fvit_parts import roi_align64


def random_boxes(count, limit, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * limit
    low, high = corners.min(dim=1).values, corners.max(dim=1).values
    return torch.cat([low, high + 1], dim=1)


def test_levels():
    sides = torch.tensor([0.0, 1, 55, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert box_levels(boxes, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    boxes = random_boxes(500, 900)
    expected = []
    for x0, y0, x1, y1 in boxes.double().tolist():
        level = math.floor(math.log2(math.sqrt((x1 - x0) * (y1 - y0)) / 56 + 1e-6))
        expected.append(min(max(level, 0), 3))
    assert box_levels(boxes, 4).tolist() == expected


def test_a_box_a_hair_below_a_boundary_is_mmdets_not_detectron2s():
    side = 112 * (1 - 2e-7)
    boxes = torch.tensor([[0.0, 0, side, side]])
    assert boxes[0, 2] < 112
    assert box_levels(boxes, 4).item() == 1


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (3.5, 7, 14, 28)])
@pytest.mark.parametrize("size", [1, 7])
def test_against_float64(strides, size):
    side = int(strides[-1]) * 8
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, 3, int(side / s), int(side / s * 0.5), generator=generator, dtype=torch.float64) for s in strides
    ]
    per_image = [random_boxes(5, side, 3), random_boxes(4, side, 4)]
    pooled = PyramidRoIAlign(size, strides)([level.float() for level in maps], [Boxes(boxes) for boxes in per_image])
    expected = []
    for image, boxes in enumerate(per_image):
        for box in boxes:
            level = box_levels(box[None], 4).item()
            expected.append(roi_align64(maps[level][image], box.double().tolist(), size, strides[level]))
    torch.testing.assert_close(pooled.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_equals_detectron2_where_its_strides_allow():
    maps = [torch.randn(2, 4, 64 // 2**level, 64 // 2**level) for level in range(4)]
    boxes = [Boxes(random_boxes(20, 250, 5)), Boxes(random_boxes(7, 250, 6))]
    theirs = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")
    torch.testing.assert_close(PyramidRoIAlign(7, (4, 8, 16, 32))(maps, boxes), theirs(maps, boxes))
    with pytest.raises(AssertionError):
        ROIPooler(7, [1 / 3.5, 1 / 7], 0, "ROIAlignV2")


def test_bfloat16_maps_keep_exact_coordinates():
    """A ramp along x, whose values bfloat16 holds, pooled at 517.3 pixels, which it does not hold."""
    ramp = torch.arange(128.0).expand(1, 1, 128, 128)
    boxes = [Boxes(torch.tensor([[517.3, 400.0, 527.3, 410.0]]))]
    with torch.autocast("cpu", torch.bfloat16):
        pooled = PyramidRoIAlign(1, (8, 16))([ramp.bfloat16(), ramp[..., :64, :64].bfloat16()], boxes)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(522.3 / 8 - 0.5, abs=1e-4)


def test_no_boxes_and_gradients():
    maps = [torch.randn(2, 4, 16, 16, requires_grad=True), torch.randn(2, 4, 8, 8, requires_grad=True)]
    empty = Boxes(torch.zeros(0, 4))
    pooler = PyramidRoIAlign(7, (4, 8))
    assert pooler(maps, [empty, empty]).shape == (0, 4, 7, 7)
    pooler(maps, [empty, Boxes(torch.tensor([[0.0, 0, 20, 20]]))]).sum().backward()
    assert maps[0].grad[0].abs().sum() == 0
    assert maps[0].grad[1].abs().sum() > 0
    with pytest.raises(ValueError, match="zip"):
        pooler(maps[:1], [empty, empty])
