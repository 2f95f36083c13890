"""Resizing as mmcv does it, by hand and against a plain loop, and a loader that keeps sizes."""

import numpy as np
import pytest
import torch
from seg_sets import ResizedImages, resize_short_side
from torch.utils.data import Dataset

from last_vit.data.loaders import build_test_loader


def plain_bilinear(image, size):
    """Half-pixel centres, two neighbours per side, no smoothing; float64."""
    image = image.double().numpy()
    axes = []
    for length, output in zip(image.shape[1:], size, strict=True):
        centre = np.clip((np.arange(output) + 0.5) * length / output - 0.5, 0, length - 1)
        low = np.floor(centre).astype(int)
        axes.append((low, np.minimum(low + 1, length - 1), centre - low))
    (y0, y1, fy), (x0, x1, fx) = axes
    rows = image[:, y0] * (1 - fy)[:, None] + image[:, y1] * fy[:, None]
    return rows[..., x0] * (1 - fx) + rows[..., x1] * fx


@pytest.mark.parametrize(
    ("image_hw", "short_side", "expected"),
    [
        ((375, 500), 336, (336, 448)),  # VOC
        ((512, 683), 336, (336, 448)),  # ADE20K: 448.2
        ((1024, 2048), 560, (560, 1120)),  # Cityscapes
        ((500, 333), 448, (673, 448)),  # 672.67 rounds up
        ((100, 1000), 336, (205, 2048)),  # the longer side binds: 204.8 rounds up
        ((336, 400), 336, (336, 400)),
    ],
)
def test_sizes_are_mmcvs(image_hw, short_side, expected):
    assert resize_short_side(torch.zeros(3, *image_hw, dtype=torch.uint8), short_side).shape == (3, *expected)


@pytest.mark.parametrize(("image_hw", "short_side"), [((40, 61), 23), ((17, 12), 30), ((90, 90), 11)])
def test_values_are_bilinear_without_antialias(image_hw, short_side):
    image = torch.randint(0, 256, (3, *image_hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = resize_short_side(image, short_side)
    # rounded; a half that float32 puts on the other side is right, too
    assert np.abs(found.numpy() - plain_bilinear(image, found.shape[1:])).max() <= 0.5 + 1e-4


def test_an_image_of_that_size_is_left_alone():
    image = torch.randint(0, 256, (3, 20, 33), dtype=torch.uint8)
    assert resize_short_side(image, 20) is image


def test_other_inputs_are_refused():
    for image in (torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"image must be uint8 \[3, H, W\]"):
            resize_short_side(image, 2)


class Images(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        size = (10 + index, 20)
        return {"image": torch.full((3, *size), index, dtype=torch.uint8), "label": torch.zeros(size), "index": index}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_loader_gives_every_image_once_at_its_own_size(batch_size):
    loader = build_test_loader(ResizedImages(Images(), 5), batch_size, 0, collate=list)
    samples = [sample for batch in loader for sample in batch]
    assert max(len(batch) for batch in loader) == batch_size
    assert [sample["index"] for sample in samples] == list(range(5))
    for index, sample in enumerate(samples):
        assert sample.keys() == {"resized", "label", "index"}
        assert torch.equal(sample["resized"], resize_short_side(Images()[index]["image"], 5))
        assert sample["label"].shape == (10 + index, 20)
