"""Box arithmetic: the convention, and the box follows the pixels through torchvision's own transform."""

import pytest
import torch
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from last_vit.boxes import box_area, box_iou, is_small_box, resize_crop_box

SIZES_HW = [(64, 64), (96, 64), (33, 97), (61, 150), (500, 333), (20, 21), (48, 285)]


def test_area_and_iou_have_no_plus_one():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 0.0, 3.0, 3.0]])
    assert box_area(boxes).tolist() == [6.0, 6.0]
    torch.testing.assert_close(box_iou(boxes, boxes), torch.tensor([[1.0, 1 / 3], [1 / 3, 1.0]]))


def test_small_boxes_take_less_than_the_share():
    boxes = torch.tensor([[0.0, 0.0, 50.0, 49.0], [0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 99.0, 50.0], [torch.nan] * 4])
    image_hw = torch.tensor([[100, 100], [100, 100], [100, 200], [100, 100]])
    assert is_small_box(boxes, image_hw, 0.25).tolist() == [True, False, True, False]


@pytest.mark.parametrize("image_hw", SIZES_HW)
@pytest.mark.parametrize(("resize", "crop"), [(37, 32), (30, 35)])
def test_box_follows_the_image(image_hw, resize, crop):
    """A ramp image, transformed by torchvision, tells which original coordinate each output pixel shows."""
    height, width = image_hw
    transform = Compose([Resize(resize, InterpolationMode.NEAREST_EXACT), CenterCrop(crop)])
    x = torch.arange(width, dtype=torch.float64).expand(1, height, width) + 1
    y = torch.arange(height, dtype=torch.float64)[:, None].expand(1, height, width) + 1
    seen_x, seen_y = transform(x)[0], transform(y)[0]  # 0 where torchvision padded
    corner, far = (0.3 * width, 0.2 * height), (0.8 * width, 0.9 * height)
    box = torch.tensor([[*corner, *far]], dtype=torch.float64)
    x1, y1, x2, y2 = resize_crop_box(box, torch.tensor([image_hw]), resize, crop)[0].tolist()
    center = torch.arange(crop, dtype=torch.float64) + 0.5
    # nearest-exact shows original pixel floor((i + 0.5) / scale); allow that one pixel of quantisation at the border
    inside_x = ((seen_x - 0.5 - corner[0]) > 0.51) & ((far[0] - seen_x + 0.5) > 0.51)
    outside_x = (seen_x > 0) & (((corner[0] - seen_x + 0.5) > 0.51) | ((seen_x - 0.5 - far[0]) > 0.51))
    inside_y = ((seen_y - 0.5 - corner[1]) > 0.51) & ((far[1] - seen_y + 0.5) > 0.51)
    mapped_x, mapped_y = (x1 <= center) & (center < x2), (y1 <= center) & (center < y2)
    assert mapped_x.expand(crop, crop)[inside_x].all()
    assert not mapped_x.expand(crop, crop)[outside_x].any()
    assert mapped_y[:, None].expand(crop, crop)[inside_y].all()


def test_nan_box_stays_nan():
    assert resize_crop_box(torch.full((1, 4), torch.nan), torch.tensor([[40, 50]]), 32, 28).isnan().all()


def test_wrong_shapes_and_sizes():
    with pytest.raises(ValueError, match=r"\[M, 4\]"):
        resize_crop_box(torch.zeros(4), torch.ones(1, 2), 8, 8)
    with pytest.raises(ValueError, match="positive"):
        resize_crop_box(torch.zeros(1, 4), torch.ones(1, 2), 0, 8)
