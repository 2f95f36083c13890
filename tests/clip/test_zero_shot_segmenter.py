"""The whole path from pixels to labels, against a version in float64 that knows one window of one image at a time."""

from dataclasses import replace

import pytest
import torch
from label_maps import LabelRule, label_pixels
from pamr import RefinedMaps
from sliding_window import StitchedMaps, plan_windows
from torch.nn import functional as F
from zero_shot_segmenter import ZeroShotSegmenter

PATCH, DIM = 8, 12
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGE_HWS = [(32, 51), (50, 33), (32, 51), (40, 90), (20, 30)]
OUTPUT_HWS = [(40, 60), (61, 40), (30, 47), (40, 90), (44, 70)]


def dense(images):
    """Features that depend on a patch's colours and on where it lies in its window, which is as floored by the conv."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(DIM, 3, PATCH, PATCH, generator=generator)
    features = F.conv2d(images, weight, stride=PATCH)
    h, w = features.shape[2:]
    places = torch.linspace(-9, 9, h)[:, None] + torch.linspace(0, 5, w)
    features = features + places * torch.randn(DIM, 1, 1, generator=generator)
    return features.flatten(2).transpose(1, 2), (h, w)


def segmenter(**changes):
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(6, DIM, generator=generator), dim=1)
    whole = ZeroShotSegmenter(
        dense=dense,
        text=text,
        rule=LabelRule([0, 0, 1, 2, 2, 3], 20.0, prob_threshold=0.3),
        mean=MEAN,
        std=STD,
        patch_size=PATCH,
        crop=28,
        stride=12,
    )
    return replace(whole, **changes)


def images():
    generator = torch.Generator().manual_seed(2)
    return [
        F.interpolate(torch.rand(1, 3, 6, 6, generator=generator) * 255, size=size, mode="bilinear")[0].to(torch.uint8)
        for size in IMAGE_HWS
    ]


def plain_labels(image, output_hw, setting):
    """One window after the other; test_sliding_window.py and test_label_maps.py hold the parts to plain versions."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = (image / 255 - mean) / std
    plan = plan_windows(tuple(pixels.shape[1:]), setting.crop, setting.stride, PATCH, setting.pad_to_patch)
    scores = []
    for window in plan.cut(pixels):
        features, grid_hw = dense(window[None])
        scores.append(F.normalize(features[0].double(), dim=1) @ setting.text.double().T)
    maps = StitchedMaps(torch.stack(scores), plan, grid_hw, output_hw)
    if setting.uses_pamr:
        maps = RefinedMaps(maps, F.interpolate(pixels[None], size=output_hw, mode="bilinear")[0].double())
    return label_pixels(maps, setting.rule)


@pytest.mark.parametrize(("pad_to_patch", "uses_pamr"), [(False, True), (True, False)])
def test_labels_are_those_of_the_plain_version(pad_to_patch, uses_pamr):
    setting = segmenter(pad_to_patch=pad_to_patch, uses_pamr=uses_pamr)
    found = setting(images(), OUTPUT_HWS)
    for label, image, output_hw in zip(found, images(), OUTPUT_HWS, strict=True):
        expected = plain_labels(image, output_hw, setting)
        assert label.shape == output_hw
        assert len(expected.unique()) > 1
        # pixels where two classes tie to within float32 may fall either way
        assert (label != expected).float().mean() < 1e-3


def test_windows_and_images_in_batches_change_nothing():
    together = segmenter(window_batch=4)(images(), OUTPUT_HWS)
    for label, image, output_hw in zip(together, images(), OUTPUT_HWS, strict=True):
        assert torch.equal(label, segmenter(window_batch=1)([image], [output_hw])[0])
