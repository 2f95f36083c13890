"""Choosing and blanking out patches: exact counts, exact pixels, and random ranks that belong to the image."""

import math
from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from masking import choose_patches, mask_patches, random_scores
from torch.nn import functional as F


def some_scores(num_images=5, num_patches=49, seed=0):
    return torch.randn(num_images, num_patches, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("num_patches", [1, 4, 10, 49, 50, 196])
def test_exactly_the_nearest_number_halves_up(order, num_patches):
    for percent in range(101):
        chosen = choose_patches(some_scores(num_patches=num_patches), percent / 100, order)
        exact = (Decimal(percent) * num_patches / 100).quantize(Decimal(1), ROUND_HALF_UP)
        assert chosen.dtype == torch.bool
        assert chosen.sum(dim=1).tolist() == [int(exact)] * 5, percent


def test_chosen_ones_score_higher_and_lower():
    score = some_scores()
    for share in (0.1, 0.5, 0.9):
        top, bottom = choose_patches(score, share, "top"), choose_patches(score, share, "bottom")
        for row, high, low in zip(score, top, bottom, strict=True):
            assert row[high].min() > row[~high].max()
            assert row[low].max() < row[~low].min()


def test_bottom_completes_top_even_where_scores_tie():
    score = some_scores(num_patches=50).round()
    for percent in range(0, 101, 10):
        rest = ~choose_patches(score, 1 - percent / 100, "top")
        assert torch.equal(choose_patches(score, percent / 100, "bottom"), rest)
    first = choose_patches(torch.zeros(1, 4), 0.5)
    assert first.tolist() == [[True, True, False, False]]


def test_larger_shares_hold_the_smaller_ones():
    score = some_scores()
    for order in ("top", "bottom"):
        small, large = (choose_patches(score, share, order) for share in (0.3, 0.4))
        assert (small & ~large).sum() == 0


def test_choosing_goes_with_the_patches():
    score = some_scores()
    permutation = torch.randperm(49, generator=torch.Generator().manual_seed(1))
    assert torch.equal(choose_patches(score[:, permutation], 0.3), choose_patches(score, 0.3)[:, permutation])
    assert torch.equal(choose_patches(score[2:3], 0.3), choose_patches(score, 0.3)[2:3])


@pytest.mark.parametrize(("grid_hw", "image_hw"), [((4, 4), (16, 16)), ((2, 3), (8, 15)), ((1, 1), (5, 5))])
def test_masks_of_grids_that_divide_are_blocks(grid_hw, image_hw):
    images = torch.randn(3, 3, *image_hw) + 9
    drop = torch.rand(3, math.prod(grid_hw), generator=torch.Generator().manual_seed(0)) < 0.5
    kept = images.clone()
    patch_h, patch_w = (size // cells for size, cells in zip(image_hw, grid_hw, strict=True))
    for image in range(3):
        for patch in drop[image].nonzero().flatten().tolist():
            row, column = divmod(patch, grid_hw[1])
            rows = slice(row * patch_h, (row + 1) * patch_h)
            kept[image, :, rows, column * patch_w : (column + 1) * patch_w] = 0
    before = images.clone()
    assert torch.equal(mask_patches(images, drop, grid_hw), kept)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("grid_hw", "image_hw"), [((3, 3), (32, 32)), ((7, 5), (50, 64)), ((13, 20), (31, 21))])
def test_masks_of_grids_that_do_not_divide(grid_hw, image_hw):
    """The patch that holds a pixel's centre, as torch's nearest-exact has it; patches as even as they can be."""
    images = torch.randn(2, 3, *image_hw) + 9
    drop = torch.rand(2, math.prod(grid_hw), generator=torch.Generator().manual_seed(0)) < 0.5
    masked = mask_patches(images, drop, grid_hw)
    mask = F.interpolate(drop.unflatten(1, grid_hw)[:, None].double(), image_hw, mode="nearest-exact")
    assert torch.equal(masked, torch.where(mask.bool(), 0.0, images))
    ones = torch.eye(math.prod(grid_hw), dtype=torch.bool)
    blank = mask_patches(torch.ones(len(ones), 3, *image_hw), ones, grid_hw) == 0
    sizes = blank[:, 0].sum(dim=(1, 2))
    assert sizes.sum() == math.prod(image_hw)  # every pixel is in one patch
    smallest, largest = (
        math.prod(rounded(size / cells) for size, cells in zip(image_hw, grid_hw, strict=True))
        for rounded in (math.floor, math.ceil)
    )
    assert smallest <= sizes.min() <= sizes.max() <= largest


def test_all_and_nothing():
    images = torch.randn(2, 3, 8, 8)
    for share, expected in ((0.0, images), (1.0, torch.zeros_like(images))):
        assert torch.equal(mask_patches(images, choose_patches(some_scores(2, 16), share), (4, 4)), expected)
    half = images.bfloat16()
    assert mask_patches(half, torch.ones(2, 16, dtype=torch.bool), (4, 4)).dtype == torch.bfloat16


def test_random_scores_belong_to_the_image():
    together = random_scores([3, 0, 99_999], 64, seed=1)
    assert together.shape == (3, 64)
    for row, index in zip(together, (3, 0, 99_999), strict=True):
        assert torch.equal(random_scores([index], 64, seed=1)[0], row)
    assert not torch.equal(random_scores([3], 64, seed=2), together[:1])
    assert len(random_scores(torch.arange(100), 64, seed=0).unique(dim=0)) == 100


def test_random_scores_prefer_no_patch():
    counts = choose_patches(random_scores(range(2000), 16, seed=0), 0.25).sum(dim=0)
    assert counts.sum() == 2000 * 4
    assert (counts - 500).abs().max() < 90  # 4.6 standard deviations


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: choose_patches(torch.zeros(4), 0.5), r"score must be \[B, N\], got \(4,\)"),
        (lambda: choose_patches(torch.zeros(1, 4), 50), r"share must be in \[0, 1\], got 50"),
        (lambda: choose_patches(torch.zeros(1, 4), 0.5, "random"), "one of top, bottom, got 'random'"),
        (lambda: mask_patches(torch.zeros(1, 3, 8, 8), torch.zeros(1, 15) > 0, (4, 4)), r"bool \[B, 16\] for a grid"),
        (lambda: mask_patches(torch.zeros(1, 3, 8, 8), torch.zeros(1, 16), (4, 4)), r"torch.float32 \(1, 16\)"),
        (lambda: mask_patches(torch.zeros(1, 3, 2, 8), torch.zeros(1, 16) > 0, (4, 4)), "does not fit an image of"),
        (lambda: random_scores([-1], 4, seed=0), "must not be negative, got 0 and"),
        (lambda: random_scores([1], 4, seed=-1), "must not be negative, got -1 and"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
