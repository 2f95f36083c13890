"""Patch foreground: exactly the share of each patch, on any grid, against a loop in fractions."""

from fractions import Fraction

import pytest
import torch
from patch_foreground import patch_foreground


def _by_loop(foreground, grid_hw):
    """One image, one patch, one pixel at a time, in exact fractions."""
    side = len(foreground)
    is_foreground, is_known = [], []
    for row in range(grid_hw[0]):
        for column in range(grid_hw[1]):
            total = known = inside = Fraction(0)
            for y in range(side):
                for x in range(side):
                    area = _overlap(y, row, side, grid_hw[0]) * _overlap(x, column, side, grid_hw[1])
                    total += area
                    known += area * (foreground[y][x] != 255)
                    inside += area * (foreground[y][x] == 1)
            is_known.append(known >= total / 2)
            is_foreground.append(known >= total / 2 and inside > known / 2)
    return is_foreground, is_known


def _overlap(pixel, patch, side, num_patches):
    size = Fraction(side, num_patches)
    return max(Fraction(0), min(Fraction(pixel + 1), (patch + 1) * size) - max(Fraction(pixel), patch * size))


@pytest.mark.parametrize(("side", "grid_hw"), [(8, (4, 4)), (9, (4, 4)), (8, (3, 5)), (10, (7, 7)), (5, (8, 2))])
def test_equals_the_loop(side, grid_hw):
    generator = torch.Generator().manual_seed(side)
    values = torch.tensor([0, 1, 1, 255], dtype=torch.uint8)
    foreground = values[torch.randint(4, (6, side, side), generator=generator)]
    is_foreground, is_known = patch_foreground(foreground, grid_hw)
    assert is_foreground.shape == is_known.shape == (6, grid_hw[0] * grid_hw[1])
    expected = [_by_loop(image.tolist(), grid_hw) for image in foreground]
    assert is_foreground.tolist() == [image[0] for image in expected]
    assert is_known.tolist() == [image[1] for image in expected]
    assert 0 < is_foreground.sum() < is_known.sum() < is_known.numel()


def test_half_is_not_more_than_half_on_a_grid_that_does_not_divide():
    """7 patches on 64 pixels: the columns left of 32 end exactly in the middle of patch 3."""
    foreground = torch.zeros(1, 64, 64, dtype=torch.uint8)
    foreground[:, :, :32] = 1
    columns = patch_foreground(foreground, (7, 7))[0].view(7, 7)
    assert columns.tolist() == [[True] * 3 + [False] * 4] * 7
    foreground[:, :, 32] = 1
    assert patch_foreground(foreground, (7, 7))[0].view(7, 7)[0].tolist() == [True] * 4 + [False] * 3


def test_half_known_is_known_and_only_known_pixels_vote():
    foreground = torch.tensor([[[1, 255, 1, 255], [255, 1, 255, 255], [255, 255, 0, 255], [255, 255, 1, 1]]])
    is_foreground, is_known = patch_foreground(foreground.to(torch.uint8), (2, 2))
    assert is_known.tolist() == [[True, False, False, True]]
    assert is_foreground.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("side", [224, 336])
def test_whole_masks_and_large_sides(side):
    for value, expected in ((1, (True, True)), (0, (False, True)), (255, (False, False))):
        foreground = torch.full((2, side, side), value, dtype=torch.uint8)
        for grid in ((14, 14), (16, 16), (7, 9), (1, 1)):
            is_foreground, is_known = patch_foreground(foreground, grid)
            assert (is_foreground == expected[0]).all()
            assert (is_known == expected[1]).all()


def test_batch_of_one_equals_slice_of_eight():
    foreground = torch.randint(2, (8, 30, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = patch_foreground(foreground, (4, 4))
    one = patch_foreground(foreground[3:4], (4, 4))
    assert all(torch.equal(many[3:4], single) for many, single in zip(whole, one, strict=True))


@pytest.mark.parametrize(
    ("foreground", "grid_hw", "match"),
    [
        (torch.zeros(2, 8, 8), (2, 2), r"uint8 \[B, S, S\], got torch.float32"),
        (torch.zeros(8, 8, dtype=torch.uint8), (2, 2), r"\(8, 8\)"),
        (torch.zeros(2, 8, 6, dtype=torch.uint8), (2, 2), r"\(2, 8, 6\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), (0, 2), r"positive counts, got \(0, 2\)"),
    ],
)
def test_wrong_arguments(foreground, grid_hw, match):
    with pytest.raises(ValueError, match=match):
        patch_foreground(foreground, grid_hw)
