"""The gallery of a report: crops are the models', disagreement a correlation. The browser reads the packed numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from report_data import ImageView, disagreement, norm_decimals
from report_page import crop_picture, pack_image
from torchvision import transforms


def view(score, frame=(0.0, 0.0, 1.0, 1.0), norm=(1.0,)) -> ImageView:
    score = torch.as_tensor(score, dtype=torch.float32)
    votes = torch.zeros(len(score), dtype=torch.long)
    return ImageView(frame, None, score, votes, torch.as_tensor(norm), None, None, best=0, is_hit=None, auroc=None)


def test_models_of_one_grid_and_crop_are_compared_patch_by_patch():
    scores = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    found = disagreement([view(score) for score in scores], [(3, 4)] * 3)
    pairs = [np.corrcoef(scores[a], scores[b])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found == pytest.approx(1 - np.mean(pairs), abs=1e-6)


def test_disagreement_follows_the_image_not_the_crop():
    """A score that rises from left to right of the image, read off by two grids on two crops."""
    near, far = (0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 1.0, 1.0)
    ramps = [torch.linspace(x1, x2, 2 * n + 1)[1::2].repeat(n) for (x1, _, x2, _), n in ((near, 8), (far, 16))]
    assert disagreement([view(ramps[0], near), view(ramps[1], far)], [(8, 8), (16, 16)]) == pytest.approx(0, abs=1e-3)
    turned = ramps[1].reshape(16, 16).T.flatten()
    assert disagreement([view(ramps[0], near), view(turned, far)], [(8, 8), (16, 16)]) == pytest.approx(1, abs=1e-6)


def test_no_disagreement_where_none_is_defined():
    score = torch.rand(4)
    grids = [(2, 2)] * 2
    assert disagreement([view(score)], grids[:1]) is None
    assert disagreement([view(score), view(torch.full((4,), 0.3))], grids) is None
    assert disagreement([view(score, (0, 0, 0.4, 1)), view(score, (0.5, 0, 1, 1))], grids) is None


def test_norms_fit_into_16_bits_with_as_many_decimals_as_there_is_room_for():
    for highest, expected in ((0.5, 3), (65.5, 3), (66.0, 2), (6553.5, 1), (60_000, 0), (9e4, -1)):
        assert norm_decimals([view([0.0, 0.0], norm=[0.1, highest])]) == expected


def test_models_with_one_crop_share_a_thumbnail():
    picture = Image.new("RGB", (80, 60))
    frame, almost, other = (0.1, 0.0, 0.9, 1.0), (0.1005, 0.0, 0.9005, 1.0), (0.2, 0.1, 0.8, 0.9)
    packed = pack_image(picture, [view([0.1], f) for f in (frame, other, almost)], 3)
    assert [entry["thumbnail"] for entry in packed["views"]] == [0, 1, 0]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in packed["thumbnails"])


def test_a_crop_is_what_torchvision_crops():
    ramp = np.add.outer(np.arange(90), np.arange(150)).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], axis=2))
    expected = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(48)])(picture)
    width, left, top = int(64 * 150 / 90), round((int(64 * 150 / 90) - 48) / 2), (64 - 48) // 2
    frame = (left / width, top / 64, (left + 48) / width, (top + 48) / 64)
    found = crop_picture(picture, frame, 48)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 3  # another filter, on a smooth image
