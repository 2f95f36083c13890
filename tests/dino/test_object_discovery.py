"""Boxes of the discovery methods: the recorded reference outputs, masks made by hand, and properties."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from object_discovery import (
    attention_mask,
    component_of,
    dino_seg_mask,
    largest_component,
    lost_mask,
    patch_box,
    patch_score_mask,
    tokencut_mask,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RECORD = json.loads((GOLDEN / "discovery.json").read_text())
TWO_BLOBS = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)


@pytest.fixture(scope="module")
def arrays():
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "discovery.npz").items()}


@pytest.mark.parametrize(("i", "case"), list(enumerate(RECORD["cases"])))
def test_lost_and_dino_seg_draw_the_recorded_boxes(arrays, i, case):
    features, grid_hw, image_hw = arrays[f"feat{i}"][0], tuple(case["grid_hw"]), tuple(case["image_hw"])
    lost = lost_mask(features, grid_hw, RECORD["k_patches"])
    assert list(patch_box(lost.mask, RECORD["patch"], image_hw)) == case["lost_box"]
    # where several patches have the fewest relatives the reference's sort picks any of them
    relatives = ((features @ features.T).fill_diagonal_(0) > 0).sum(1)
    assert relatives[lost.seed] == relatives[case["lost_seed"]] == relatives.min()
    dino_seg = dino_seg_mask(arrays[f"attn{i}"][RECORD["dino_seg_head"]][1:], grid_hw)
    assert list(patch_box(dino_seg.mask, RECORD["patch"], image_hw, clip=False)) == case["dino_seg_box"]


def attention_on(mask):
    """Attention of which the patches of a mask hold 62%, and no part of them holds 60%."""
    values = torch.full((mask.size,), 0.38 / (mask.size - mask.sum()))
    return values.masked_fill(torch.from_numpy(mask.ravel()), 0.62 / mask.sum())


def test_dino_seg_as_published_never_takes_the_last_component_but_its_outside():
    attention = attention_on(TWO_BLOBS)
    published, mended = (dino_seg_mask(attention, (3, 4), flag).mask for flag in (True, False))
    assert np.array_equal(published, component_of(TWO_BLOBS, 0))
    assert np.array_equal(mended, component_of(TWO_BLOBS, 11))
    lone = np.zeros((4, 4), dtype=bool)
    lone[1:3, 1:3] = True
    for flag, expected in ((True, ~lone), (False, lone)):
        assert np.array_equal(dino_seg_mask(attention_on(lone), (4, 4), flag).mask, expected)


def test_attention_mask_keeps_the_fewest_patches_that_hold_the_mass():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(20, 30, generator=generator, dtype=torch.float64)
    kept = attention_mask(attention, 0.6)
    share = attention / attention.sum(1, keepdim=True)
    held = (share * kept).sum(1)
    smallest = share.masked_fill(~kept, 2).min(1).values
    assert (held >= 0.6).all()
    assert (held - smallest < 0.6).all(), "one patch less would not hold it"
    assert (share.masked_fill(kept, -1).max(1).values <= smallest).all()


@pytest.mark.parametrize(("component", "size"), [("peak", 2), ("largest", 3), ("all", 5)])
def test_patch_score_components(component, size):
    score = torch.from_numpy(TWO_BLOBS.ravel()).float() * 0.9
    score[0] = 1.0
    found = patch_score_mask(score, (3, 4), component, num_std=0.0)
    assert (found.seed, found.mask.sum()) == (0, size)
    equal = patch_score_mask(torch.full((12,), 0.3), (3, 4), component)  # the first patch alone
    assert (equal.seed, equal.mask.sum()) == (0, 1)


def test_tokencut_and_lost_take_the_small_region_as_the_object():
    """A 6 x 8 grid with an object of 3 x 3 patches on a background of another direction."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:5] = True
    noise = 0.05 * torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    features = torch.eye(16)[:2][torch.from_numpy(mask.ravel()).long()] + noise
    found = tokencut_mask(features, (6, 8))
    assert np.array_equal(found.mask, mask)
    assert mask.flat[found.seed]
    # background and object of opposite signs: relatives are within the regions only
    features = features[:, :1] - features[:, 1:2]
    assert np.array_equal(lost_mask(features, (6, 8), num_candidates=9).mask, mask)


def test_tokencut_cuts_the_graph_of_its_tau_and_eps():
    """The symmetric form of the same problem: D^-1/2 (D - W) D^-1/2 z = lambda z, y = D^-1/2 z."""
    features = torch.randn(24, 6, generator=torch.Generator().manual_seed(3)).double()
    unit = features / features.norm(dim=1, keepdim=True)
    masks = []
    for tau, eps in ((0.2, 0.1), (0.4, 0.1), (0.2, 0.3)):
        weights = torch.where(unit @ unit.T > tau, 1.0, eps)
        scale = weights.sum(dim=1).rsqrt()
        _, vectors = torch.linalg.eigh(torch.eye(24) - scale[:, None] * weights * scale)
        second = vectors[:, 1] * scale
        seed = int(second.abs().argmax())
        side = (second > second.mean()) == (second > second.mean())[seed]
        found = tokencut_mask(features, (4, 6), tau, eps)
        assert found.seed == seed
        np.testing.assert_array_equal(found.mask, component_of(side.reshape(4, 6).numpy(), seed))
        masks.append(found.mask.tobytes())
    assert len(set(masks)) > 1


def test_boxes_end_with_the_image_and_components():
    mask = np.zeros((3, 4), dtype=bool)
    mask[1:, 2:] = True
    assert patch_box(mask, 16, (40, 55)) == (32.0, 16.0, 55.0, 40.0)
    assert patch_box(mask, 16, (40, 55), clip=False) == (32.0, 16.0, 64.0, 48.0)
    assert np.array_equal(component_of(TWO_BLOBS, 3), np.eye(12)[3].reshape(3, 4).astype(bool)), "outside: alone"
    assert not largest_component(np.zeros((2, 2), dtype=bool)).any()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tokencut_mask(torch.rand(2, 3), (1, 2)), "at least 3 patches, got 2"),
        (lambda: tokencut_mask(torch.rand(6, 3), (2, 3), eps=0.0), r"eps is a weight in \(0, 1\], got 0"),
        (lambda: patch_box(np.zeros((2, 2), dtype=bool), 16, (32, 32)), "at least one patch"),
        (lambda: attention_mask(torch.rand(4), 1.5), r"mass is a share .* got 1\.5"),
    ],
)
def test_errors_say_what_is_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()
