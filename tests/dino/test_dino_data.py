"""The views that DINO's augmentation draws, and the folders of images that they are drawn from."""

import random

import numpy as np
import pytest
import torch
from dino_data import MultiCropAugmentation, blur, open_training_images
from PIL import Image

from last_vit.data.loaders import SeededSamples
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_views(image):
    views = MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 3, 32, 16)(image)
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for view in views:
        assert view.dtype == torch.float32
        pixels = view * std + mean
        assert -1e-5 <= pixels.min() < pixels.max() <= 1 + 1e-5
    assert len(MultiCropAugmentation((0.14, 1.0), (0.05, 0.4), 0, 32)(image)) == 2


def test_views_differ_in_their_distortions(image):
    """The first global view is always blurred, the second alone is solarised, local views are blurred half the time."""
    views = MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 1).views
    steps = [{type(step).__name__: step for step in view.transforms} for view in views]  # of two, the later: the blur
    assert [step["RandomApply"].p for step in steps] == [1.0, 0.1, 0.5]
    assert ["RandomSolarize" in step for step in steps] == [False, True, False]
    assert (steps[1]["RandomSolarize"].threshold, steps[1]["RandomSolarize"].p) == (128, 0.2)
    assert len({np.asarray(blur(image)).std() for _ in range(20)}) == 20  # each of its own radius


def test_views_are_a_function_of_seed_and_position():
    images = open_training_images("synthetic", MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 2, 32, 16))
    samples = [SeededSamples(images, seed)[5]["image"] for seed in (0, 0, 1)]
    random.seed(9)
    torch.manual_seed(9)
    samples.append(SeededSamples(images, 0)[5]["image"])
    for other, equal in ((1, True), (2, False), (3, True)):
        assert all(torch.equal(a, b) for a, b in zip(samples[0], samples[other], strict=True)) is equal


@pytest.mark.parametrize(
    ("data_path", "found"), [(".", ["train/a/1", "train/b/1"]), ("train/", ["train/a/1", "train/b/1"]), ("c", ["c/1"])]
)
def test_training_images(tmp_path, image, data_path, found):
    for name in ("train/a", "train/b", "c"):
        (tmp_path / name).mkdir(parents=True)
        image.save(tmp_path / name / "1.png")
    images = open_training_images(str(tmp_path / data_path), lambda image: image.size)
    assert images.image_paths == [str(tmp_path / f"{path}.png") for path in found]
    assert images[0]["image"] == (60, 40)
