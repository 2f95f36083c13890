"""Crops in groups of one size, the head once, and the views that DINO's augmentation draws."""

import random

import numpy as np
import pytest
import torch
from dino_augmentation import MultiCropAugmentation, RandomBlur
from dino_data import open_training_images
from dino_parts import tiny_network
from PIL import Image
from torch import nn

from last_vit.data.loaders import SeededSamples
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD


class Counter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.batches = inner, []

    def forward(self, x):
        self.batches.append(tuple(x.shape))
        return self.inner(x)


def test_one_backbone_pass_per_size_and_one_head_pass():
    network = tiny_network().eval()
    crops = [torch.randn(2, 3, side, side) for side in (32, 32, 16, 16, 16)]
    with torch.no_grad():
        expected = torch.cat([network.head(network.backbone(crop)) for crop in crops])
        network.backbone, network.head = Counter(network.backbone), Counter(network.head)
        torch.testing.assert_close(network(crops), expected, atol=1e-5, rtol=1e-5)
    assert network.backbone.batches == [(4, 3, 32, 32), (6, 3, 16, 16)]
    assert network.head.batches == [(10, 48)]


def test_names_are_those_of_dinos_checkpoints():
    names = list(tiny_network().state_dict())
    assert names[0] == "backbone.cls_token"
    assert names[-2:] == ["head.last_layer.weight_g", "head.last_layer.weight_v"]
    assert all(name.startswith(("backbone.", "head.")) for name in names)


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


def test_without_local_crops(image):
    assert len(MultiCropAugmentation((0.14, 1.0), (0.05, 0.4), 0, 32)(image)) == 2


def blurred_share(views, count):
    """Views of a checkerboard: a blur, and nothing else here, removes its contrast."""
    board = Image.fromarray(np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((1, 1))).astype(np.uint8) * 255).convert(
        "RGB"
    )
    return sum(np.asarray(views(board)).std() < 100 for _ in range(count)) / count


def test_blur_probability_and_radius(image):
    torch.manual_seed(0)
    assert blurred_share(RandomBlur(0.0), 20) == 0
    assert blurred_share(RandomBlur(0.5), 200) == pytest.approx(0.45, abs=0.1)  # the smallest radii change little
    radii = [np.asarray(RandomBlur(1.0)(image)).std() for _ in range(20)]
    assert len(set(radii)) == 20


def test_views_differ_in_their_distortions():
    """The first global view is always blurred, the second alone is solarised, local views are blurred half the time."""
    first, second, local = MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 1).views
    blurs = [
        next(t for t in view.transforms if isinstance(t, RandomBlur)).probability for view in (first, second, local)
    ]
    assert blurs == [1.0, 0.1, 0.5]
    solarized = [
        [t for t in view.transforms if type(t).__name__ == "RandomSolarize"] for view in (first, second, local)
    ]
    assert [len(found) for found in solarized] == [0, 1, 0]
    assert (solarized[1][0].threshold, solarized[1][0].p) == (128, 0.2)


def test_views_are_a_function_of_seed_and_position():
    images = open_training_images("synthetic", MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 2, 32, 16))
    samples = [SeededSamples(images, seed)[5]["image"] for seed in (0, 0, 1)]
    random.seed(9)
    torch.manual_seed(9)
    samples.append(SeededSamples(images, 0)[5]["image"])
    for other, equal in ((1, True), (2, False), (3, True)):
        assert all(torch.equal(a, b) for a, b in zip(samples[0], samples[other], strict=True)) is equal


def test_training_images(tmp_path, image):
    for name in ("train/a", "train/b", "other/c", "flat"):
        (tmp_path / "imagenet" / name).mkdir(parents=True)
        image.save(tmp_path / "imagenet" / name / "1.png")
    paths = {
        "imagenet": ["train/a/1.png", "train/b/1.png"],
        "imagenet/train/": ["train/a/1.png", "train/b/1.png"],
        "imagenet/other": ["other/c/1.png"],
        "imagenet/flat": ["flat/1.png"],
    }
    for folder, expected in paths.items():
        images = open_training_images(str(tmp_path / folder), lambda image: image.size)
        assert images.image_paths == [str(tmp_path / "imagenet" / path) for path in expected]
        assert images[0] == {"image": (60, 40)}
    with pytest.raises(FileNotFoundError, match="class folders of images"):
        open_training_images(str(tmp_path / "absent" / "train"), None)
