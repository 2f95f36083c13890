"""Windows of an image and their stitched maps, against one window at a time on a canvas of all names in float64."""

import pytest
import torch
from sliding_window import StitchedMaps, plan_windows
from torch.nn import functional as F

PATCH = 4


def plain_windows(length, crop, stride):
    """First pixel and end of each window: multiples of the stride, the last ones shifted inside."""
    if length <= crop:
        return [(0, length)]
    return [
        (min(i * stride, length - crop), min(i * stride, length - crop) + crop)
        for i in range(-(-(length - crop) // stride) + 1)
    ]


def plain_stitch(per_window, image_hw, output_hw, crop, stride, pad_to_patch):
    """`per_window` takes (index, window height and width) to [Q, h, w]; the published way, window after window."""
    height, width = image_hw
    total = count = None
    index = 0
    for top, bottom in plain_windows(height, crop, stride):
        for left, right in plain_windows(width, crop, stride):
            h, w = bottom - top, right - left
            missing = [(-side % PATCH) if pad_to_patch else 0 for side in (h, w)]
            maps = per_window(index)
            stretched = F.interpolate(maps[None], size=(h + missing[0], w + missing[1]), mode="bilinear")[0]
            y, x = (each // 2 for each in missing)
            if total is None:
                total, count = (
                    torch.zeros(len(maps), *image_hw, dtype=torch.float64),
                    torch.zeros(image_hw, dtype=torch.float64),
                )
            total[:, top:bottom, left:right] += stretched[:, y : y + h, x : x + w]
            count[top:bottom, left:right] += 1
            index += 1
    assert count.min() >= 1
    return F.interpolate((total / count)[None], size=output_hw, mode="bilinear")[0], index


CASES = [
    # image, crop, stride, output
    ((24, 24), 24, 12, (24, 24)),  # one window
    ((30, 41), 16, 8, (37, 55)),  # the last ones shifted inside
    ((33, 18), 18, 5, (40, 40)),  # windows that are no whole patches; as wide as the image
    ((10, 40), 16, 8, (31, 99)),  # lower than the crop
    ((9, 11), 16, 8, (18, 22)),  # smaller than the crop on both sides
]


@pytest.mark.parametrize("pad_to_patch", [False, True])
@pytest.mark.parametrize(("image_hw", "crop", "stride", "output_hw"), CASES)
def test_stitched_maps_are_the_plain_ones(image_hw, crop, stride, output_hw, pad_to_patch):
    plan = plan_windows(image_hw, crop, stride, PATCH, pad_to_patch)
    image = torch.rand(3, *image_hw)
    windows = plan.cut(image)
    if not pad_to_patch:
        spans = [plain_windows(length, crop, stride) for length in image_hw]
        cut = [image[:, top:bottom, left:right] for top, bottom in spans[0] for left, right in spans[1]]
        assert torch.equal(windows, torch.stack(cut))
    grid_hw = tuple(side // PATCH for side in windows.shape[2:])
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(windows), grid_hw[0] * grid_hw[1], 5, generator=generator, dtype=torch.float64)
    per_window = scores.transpose(1, 2).unflatten(2, grid_hw)
    expected, number = plain_stitch(lambda i: per_window[i], image_hw, output_hw, crop, stride, pad_to_patch)
    assert number == len(windows)
    maps = StitchedMaps(scores.float(), plan, grid_hw, output_hw)
    assert len(maps) == 5
    torch.testing.assert_close(maps[:], expected.float(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(maps[[3, 1]], expected[[3, 1]].float(), rtol=1e-5, atol=2e-6)


def test_known_plans():
    """VOC's 375 x 500 at 336: 2 x 3 windows in SCLIP, one row of 2 in ClearCLIP."""
    sclip = plan_windows((336, 448), 224, 112, 16)
    assert (sclip.rows.starts, sclip.columns.starts) == ((0, 112), (0, 112, 224))
    clear = plan_windows((448, 597), 448, 224, 16, pad_to_patch=True)
    assert (clear.rows.starts, clear.columns.starts) == ((0,), (0, 149))
    small = plan_windows((300, 448), 448, 224, 14, pad_to_patch=True)
    assert (small.rows.window, small.rows.pad, small.columns.pad) == (300, (4, 4), (0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((64, 64), 15, 8, 16), "at least a patch of 16 pixels, got 15"),
        (((64, 64), 32, 0, 16), r"stride must be in \[1, 32\].*got 0; for the whole image"),
        (((64, 64), 32, 33, 16), "leave no gap, got 33"),
        (((64, 12), 32, 16, 16), "an image of 64 x 12 pixels is smaller than a patch of 16"),
        (((12, 64), 0, 0, 16), "smaller than a patch"),
    ],
)
def test_plans_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)
