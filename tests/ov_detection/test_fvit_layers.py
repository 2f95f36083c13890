"""Matching, box deltas, RoIAlign and norms against plain versions, and where they differ from detectron2's."""

import math

import pytest
import torch
from detectron2.layers import batch_norm, get_norm
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from fvit import fvit_layers
from fvit.fvit_layers import (
    ClampedBoxTransform,
    IoUMatcher,
    PyramidRoIAlign,
    RegionSyncBatchNorm,
    box_levels,
    choose_norm,
)
from fvit_parts import roi_align64


def plain_matches(overlaps, negative_below, positive_from, low_quality, min_low_quality):
    """mmdet's MaxIoUAssigner as FACTS describe it, box by box; object index and label per box."""
    matches, labels = [], []
    for box in range(overlaps.shape[1]):
        best = max(range(overlaps.shape[0]), key=lambda place: overlaps[place, box].item())
        overlap = overlaps[best, box].item()
        matches.append(best)
        labels.append(1 if overlap >= positive_from else 0 if overlap < negative_below else -1)
    for place in range(overlaps.shape[0]) if low_quality else ():
        highest = overlaps[place].max().item()
        for box in range(overlaps.shape[1]) if highest >= min_low_quality else ():
            if overlaps[place, box].item() == highest:
                matches[box], labels[box] = place, 1
    return matches, labels


@pytest.mark.parametrize("options", [(0.3, 0.7, True, 0.3), (0.5, 0.5, False, 0.5), (0.5, 0.5, True, 0.5)])
def test_matches(options):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        overlaps = (torch.rand(4, 30, generator=generator, dtype=torch.float64) ** 2 * 20).round() / 20  # with ties
        matches, labels = IoUMatcher(*options)(overlaps)
        assert (matches.tolist(), labels.tolist()) == plain_matches(overlaps, *options)
    assert IoUMatcher(*options)(torch.zeros(0, 5))[1].tolist() == [0] * 5
    assert len(IoUMatcher(*options)(torch.zeros(3, 0))[0]) == 0


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), [0.1, 0.1, 0.2, 0.2]])  # a list, as a config gives it
def test_box_deltas(stds):
    transform = ClampedBoxTransform(stds)
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(50, 8, generator=generator) * 10  # many beyond the clamp on either side
    corners = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + torch.rand(50, 2, generator=generator) * 80 + 1], dim=1)
    ours = transform.apply_deltas(deltas, boxes)
    width_height, limit = boxes[:, 2:] - boxes[:, :2], math.log(1000 / 16)
    for part in (slice(0, 4), slice(4, 8)):  # several boxes per region
        shift, size = (deltas[:, part] * torch.tensor(stds)).double().chunk(2, dim=1)
        center, half = (boxes[:, :2] + boxes[:, 2:]) / 2 + shift * width_height, size.clamp(-limit, limit).exp() / 2
        expected = torch.cat([center - half * width_height, center + half * width_height], dim=1)
        torch.testing.assert_close(ours[:, part].double(), expected, rtol=1e-5, atol=1e-2)
    targets = boxes + torch.tensor([5.0, -2, 10, 10])
    encoded = transform.get_deltas(boxes, targets)
    torch.testing.assert_close(encoded, Box2BoxTransform([1 / std for std in stds]).get_deltas(boxes, targets))
    torch.testing.assert_close(transform.apply_deltas(encoded, boxes), targets)
    assert transform.apply_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def random_boxes(count, limit, seed=0):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * limit
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


def test_levels():
    sides = torch.tensor([0.0, 1, 55, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert box_levels(boxes, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    hair = 112 * (1 - 2e-7)  # below a boundary, for detectron2
    assert box_levels(torch.tensor([[0.0, 0, hair, hair]]), 4).item() == 1


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (3.5, 7, 14, 28)])
@pytest.mark.parametrize("size", [1, 7])
def test_roi_align_against_float64(strides, size):
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


def test_roi_align_keeps_exact_coordinates_in_bfloat16():
    """A ramp along x, whose values bfloat16 holds, pooled at 517.3 pixels, which it does not hold."""
    ramp = torch.arange(128.0).expand(1, 1, 128, 128)
    boxes = [Boxes(torch.tensor([[517.3, 400.0, 527.3, 410.0]]))]
    with torch.autocast("cpu", torch.bfloat16):
        pooled = PyramidRoIAlign(1, (8, 16))([ramp.bfloat16(), ramp[..., :64, :64].bfloat16()], boxes)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(522.3 / 8 - 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("world_size", "backend", "expected"),
    [(1, None, ("BN", "BN")), (2, "gloo", ("BN", "BN")), (8, "nccl", ("SyncBN", RegionSyncBatchNorm))],
)
def test_norms(monkeypatch, world_size, backend, expected):
    monkeypatch.setattr(fvit_layers.comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    assert (choose_norm("auto"), choose_norm("auto", may_be_empty=True)) == expected
    for name in expected:
        assert get_norm(name, 4).state_dict().keys() == torch.nn.BatchNorm2d(4).state_dict().keys()
    assert [choose_norm(name) for name in ("", "GN", "FrozenBN")] == ["", "GN", "FrozenBN"]


def test_the_norm_of_regions_is_exact_on_bfloat16(monkeypatch):
    """Two processes with the same regions; means far from zero, as after a bias has been learned."""
    monkeypatch.setattr(batch_norm.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "differentiable_all_reduce", lambda values: 2 * values)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    x = (0.3 * torch.randn(64, 16, 7, 7) + torch.linspace(3, 12, 16)[:, None, None]).bfloat16().requires_grad_()
    norm = RegionSyncBatchNorm(16).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    expected = torch.nn.functional.batch_norm(x.detach().float(), None, None, training=True)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.01)
    assert norm(x[:0]).shape == (0, 16, 7, 7)
    found.float().square().sum().backward()
    assert x.grad.isfinite().all()
