"""Samples: sizes of jitter and crop, boxes that follow the pixels, masks, random numbers, and broken images."""

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from ov_mapper import OvMapper
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIDE = 64


def record(tmp_path, height=90, width=120, box=(80.0, 50.0, 110.0, 80.0), name="x.png"):
    """A red box on black; its mask is the box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = map(int, box)
    pixels[y1:y2, x1:x2] = (250, 20, 10)
    Image.fromarray(pixels).save(tmp_path / name)
    mask = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    kept = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3, "segmentation": mask}
    entry = {"file_name": str(tmp_path / name), "height": height, "width": width, "image_id": 5}
    return {**entry, "annotations": [kept]}


def red_box(image):
    """Box of the pixels that are mostly red."""
    rows, columns = np.nonzero((image[0] > 125).numpy())
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_follow_the_pixels(tmp_path, masks):
    entry, mapper = record(tmp_path), OvMapper(SIDE, train=True, masks=masks)
    before = repr(entry)
    longest, empty, flips = [], 0, 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = mapper(entry)
        image, instances = sample["image"], sample["instances"]
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert max(image.shape[1:]) <= SIDE
        assert instances.image_size == tuple(image.shape[1:])
        longest.append(max(image.shape[1:]))
        if not len(instances):
            empty += 1
            assert (image[0] > 125).sum() < 0.05 * image[0].numel()
            continue
        assert instances.gt_classes.tolist() == [3]
        expected, found = red_box(image), instances.gt_boxes.tensor[0]
        assert (found - expected).abs().max() <= 2
        assert (image[0].float() - image[2].float()).max() > 200  # RGB
        flips += bool((found[0] + found[2]) / 2 > image.shape[2] / 2)
        if masks:
            drawn = instances.gt_masks.tensor[0]
            assert drawn.shape == image.shape[1:]
            assert torch.equal(found.long(), torch.tensor([*_box_of(drawn)]))
    # 0.1 to 2 times the square, cut at 1; the smallest of 60 draws
    assert min(longest) < 0.25 * SIDE
    assert 20 < longest.count(SIDE) < 50
    assert 0 < empty < 15
    assert 10 < flips < 50
    assert repr(entry) == before


def _box_of(mask):
    rows, columns = np.nonzero(mask.numpy())
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_test_images_fit_the_square(tmp_path):
    mapper = OvMapper(SIDE, train=False)
    for height, width, shape in ((90, 120, (48, 64)), (120, 30, (64, 16)), (16, 32, (32, 64))):
        entry = record(tmp_path, height, width, (1.0, 1.0, 9.0, 9.0))
        del entry["annotations"]
        sample = mapper(entry)
        assert tuple(sample["image"].shape[1:]) == shape
        assert (sample["height"], sample["width"], sample["image_id"]) == (height, width, 5)
        assert "instances" not in sample
        assert torch.equal(sample["image"], mapper(entry)["image"])


def test_random_numbers_are_torchs(tmp_path):
    entry, mapper = record(tmp_path), OvMapper(SIDE, train=True)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(mapper(entry))
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert not torch.equal(samples[0]["image"], samples[2]["image"])
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_slivers_are_dropped(tmp_path, monkeypatch):
    entry = record(tmp_path, SIDE, SIDE, (10.0, 10.0, 40.0, 40.0))
    sliver = {**entry["annotations"][0], "bbox": [10.0, 10.0, 10.004, 40.0], "category_id": 7}
    entry["annotations"].append(sliver)
    monkeypatch.setattr("ov_mapper.SCALES", (1.0, 1.0))
    assert OvMapper(SIDE, train=True)(entry)["instances"].gt_classes.tolist() == [3]


def test_broken_images(tmp_path):
    mapper = OvMapper(SIDE, train=True, masks=True)
    entry = record(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image .*nowhere\.png"):
        mapper({**entry, "file_name": str(tmp_path / "nowhere.png")})
    with pytest.raises(ValueError, match=r"x\.png cannot be used: Mismatched image shape"):
        mapper({**entry, "height": 91, "annotations": []})
    whole = (tmp_path / "x.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.jpg", b"text"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be used"):
            mapper({**entry, "file_name": str(tmp_path / name)})
    broken = {**entry["annotations"][0], "segmentation": {"size": [1, 2], "counts": [2]}}
    with pytest.raises(ValueError, match=r"x.png has a broken mask: .*size \[1, 2\]"):
        mapper({**entry, "annotations": [broken]})
    with pytest.raises(ValueError, match="size must be at least 1"):
        OvMapper(0, train=True)
