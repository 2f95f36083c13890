"""The evaluation and the training transform against torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, train_transform

NOISE = np.random.default_rng(0).normal(0, 6, (171, 233, 3))
SCENE = Image.fromarray((np.cumsum(NOISE, axis=1) + 128).clip(0, 255).astype(np.uint8))  # edges and smooth parts
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def _noise(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(40, 60), (500, 333), (20, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_transform_is_torchvisions(size, interpolation):
    reference = transforms.Compose(
        [
            transforms.Resize(48, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(40),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    image = _noise(size)
    assert torch.equal(EvalTransform(48, 40, interpolation=interpolation)(image), reference(image))


@pytest.mark.parametrize(("interpolation", "largest"), [("bilinear", 1), ("bicubic", 12)])
@pytest.mark.parametrize(("size", "scale"), [(32, (0.3, 0.4)), (96, (0.08, 1.0))])
def test_train_transform_is_torchvisions(interpolation, largest, size, scale):
    """The same crops and flips from the same numbers; pixels differ by rounding: on average a tenth of one of 255."""
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    ours = train_transform(size, **PLAIN, scale=scale, interpolation=interpolation)
    for seed in range(9):
        image = SCENE if seed % 3 else SCENE.transpose(Image.Transpose.ROTATE_90)
        torch.manual_seed(seed)
        view, state = ours(image), torch.get_rng_state()
        torch.manual_seed(seed)
        difference = 255 * (view - reference(image)).abs()
        assert torch.equal(state, torch.get_rng_state())
        assert difference.max() < largest + 0.01
        assert difference.mean() < 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64)])
def test_train_transform_of_any_size_normalises(size):
    view = train_transform(16)(Image.new("RGB", size, (51, 102, 204)))
    assert (view.dtype, view.is_contiguous()) == (torch.float32, True)
    expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(view, expected.view(3, 1, 1).expand(3, 16, 16), rtol=0, atol=1e-6)


def test_data_set_reads_with_its_transforms_reader(tmp_path):
    """The same views whether the transform's reader or Pillow decodes, and whatever the pixels' order in memory."""
    folder = tmp_path / "train" / "n01"
    folder.mkdir(parents=True)
    SCENE.convert("CMYK").save(folder / "b.jpg")
    SCENE.save(folder / "a.jpg", quality=95)
    transform = train_transform(48)
    fast = ImageNetDataset(tmp_path, "train", transform)
    plain = ImageNetDataset(tmp_path, "train", lambda image: transform(image))
    pixels = transform.load(folder / "a.jpg")
    assert pixels.permute(1, 2, 0).is_contiguous()
    reads = [lambda: fast[0]["image"], lambda: plain[0]["image"], lambda: transform(pixels.contiguous())]
    for same in (reads, [lambda: fast[1]["image"], lambda: plain[1]["image"]]):
        views = []
        for read in same:
            torch.manual_seed(1)
            views.append(read())
        assert all(torch.equal(view, views[0]) for view in views)
    assert fast[0]["image_hw"].tolist() == plain[0]["image_hw"].tolist() == [171, 233]
    (folder / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read"):
        fast[0]


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (EvalTransform, {"interpolation": "nearest"}),
        (EvalTransform, {"resize": 0}),
        (train_transform, {"size": 0}),
        (train_transform, {"scale": (0.5, 0.2)}),
        (train_transform, {"interpolation": "area"}),
    ],
)
def test_wrong_arguments(build, options):
    with pytest.raises(ValueError, match="must be"):
        build(**options)
