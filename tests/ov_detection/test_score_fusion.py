"""Fused scores against the formulas written out in float64."""

import pytest
import torch
from fvit.box_predictor import fuse_scores

IS_BASE = torch.tensor([True, False, True, False, False])


def logits(seed, rows=40):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, 6, generator=generator) * 2 - 1) * 75


def plain(det, vlm, alpha, beta, fusion):
    det, vlm = det.double().softmax(1), vlm.double().softmax(1)
    out = torch.zeros_like(det)
    for place in range(6):
        if place == 5:
            out[:, 5] = det[:, 5] if fusion == "f-vlm" else det[:, 5] ** (1 - alpha) * vlm[:, 5] ** alpha
        else:
            weight = alpha if IS_BASE[place] else beta
            out[:, place] = det[:, place] ** (1 - weight) * vlm[:, place] ** weight
    return out / out.sum(dim=1, keepdim=True) if fusion == "f-vlm" else out


@pytest.mark.parametrize("fusion", ["f-vit", "f-vlm"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.8), (0.35, 0.65), (0.2, 0.2), (0.0, 1.0)])
def test_against_float64(fusion, alpha, beta):
    det, vlm = logits(0), logits(1)
    ours = fuse_scores(det, vlm, IS_BASE, alpha, beta, fusion)
    torch.testing.assert_close(ours.double(), plain(det, vlm, alpha, beta, fusion), rtol=2e-4, atol=1e-12)
    sums = ours.sum(dim=1)
    assert torch.allclose(sums, torch.ones(40)) == (fusion == "f-vlm")


def test_ends():
    det, vlm = logits(0), logits(1)
    torch.testing.assert_close(fuse_scores(det, vlm, IS_BASE, 0.0, 0.0), det.softmax(1))
    only_vlm = fuse_scores(det, vlm, IS_BASE, 1.0, 1.0)
    torch.testing.assert_close(only_vlm, vlm.softmax(1))


def test_far_logits_stay_finite():
    det = torch.tensor([[500.0, -500, 0, 0, 0, 0]])
    for fusion in ("f-vit", "f-vlm"):
        assert torch.isfinite(fuse_scores(det, -det, IS_BASE, 0.1, 0.8, fusion)).all()
    assert fuse_scores(torch.zeros(0, 6), torch.zeros(0, 6), IS_BASE, 0.1, 0.8).shape == (0, 6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((0.1, 0.8, "mean"), "f-vit, f-vlm"), ((1.5, 0.8), "alpha must be"), ((0.1, -0.1), "beta must be")],
)
def test_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        fuse_scores(logits(0), logits(1), IS_BASE, *arguments)
