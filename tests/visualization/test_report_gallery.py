"""The gallery of a report: thumbnails are what models see, disagreement a correlation. The browser reads the rest."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from report_data import ImageView, disagreement
from report_page import pack_image
from torchvision.transforms.functional import center_crop, resize


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


def test_models_with_one_crop_share_a_thumbnail():
    """At its own resolution, what the model's own resizing and cropping shows."""
    ramp = np.add.outer(np.arange(90), np.arange(150)).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], axis=2))
    packed = pack_image(picture, [view([0.1])] * 3, [64 / 48, 1.0, 128 / 96])
    assert [entry["thumbnail"] for entry in packed["views"]] == [0, 1, 0]
    data, *_ = (base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")) for uri in packed["thumbnails"])
    expected = center_crop(resize(picture, 64), 48).resize((224, 224))
    shown = np.asarray(Image.open(io.BytesIO(data)), int)
    assert np.abs(shown - np.asarray(expected, int)).mean() < 3
