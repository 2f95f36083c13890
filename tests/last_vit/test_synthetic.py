"""The synthetic set: a pure function of (seed, split, index), honest boxes and captions, and official layouts.

That the layouts' readers give back what was drawn is tested with the readers.
"""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from last_vit.boxes import box_area
from last_vit.data.synthetic import COLOURS, MAX_CLASSES, PLACES, SyntheticObjects, describe, write_voc

CAPTION = re.compile(
    rf"a photo of (an?) ({'|'.join(COLOURS)}) (?P<class>\w+ \w+) ({'|'.join(PLACES)}), on a (\w+) background"
)


@pytest.fixture(scope="module")
def drawn():
    """240 images of 4 classes."""
    samples = SyntheticObjects(240, "train", image_size=32, num_classes=4)
    return [samples.render(index) for index in range(len(samples))]


def test_pure_function_of_seed_split_and_index():
    samples = SyntheticObjects(50, "train", image_size=32, seed=1)
    again = SyntheticObjects(9, "train", image_size=32, seed=1)
    for index in (3, 0, 8):
        one, other = samples[index], again[index]
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
        assert samples.render(index).caption == again.render(index).caption
    for other in (SyntheticObjects(9, "val", image_size=32, seed=1), SyntheticObjects(9, "train", image_size=32)):
        assert not torch.equal(samples[0]["image"], other[0]["image"])


@pytest.mark.parametrize("size", [16, 90])
def test_sample_and_render_agree(size):
    samples = SyntheticObjects(MAX_CLASSES, "val", image_size=size, num_classes=MAX_CLASSES)
    for index in range(0, MAX_CLASSES, 3):
        sample, rendered = samples[index], samples.render(index)
        assert sample["image"].shape == (3, size, size)
        assert rendered.mask.shape == (size, size)
        assert sample["label"] == rendered.label == index
        assert (sample["index"], sample["num_objects"], sample["image_hw"].tolist()) == (index, 1, [size, size])
        assert torch.equal(sample["box_xyxy"], rendered.box_xyxy)
        (y1, x1), (y2, x2) = rendered.mask.nonzero().amin(dim=0), rendered.mask.nonzero().amax(dim=0) + 1
        assert rendered.box_xyxy.tolist() == [x1, y1, x2, y2]
        assert rendered.class_name == samples.classes[index]
    with pytest.raises(IndexError):
        samples[MAX_CLASSES]


def test_labels_are_balanced_backgrounds_independent_of_them_and_sizes_vary(drawn):
    assert Counter(each.label for each in drawn) == dict.fromkeys(range(4), 60)
    kinds = Counter((each.label, each.caption.split()[-2]) for each in drawn)
    assert len(kinds) == 16
    assert min(kinds.values()) >= 6  # expected 15
    share = box_area(torch.stack([each.box_xyxy for each in drawn])) / 32**2
    assert share.quantile(0.1) < 0.15
    assert share.quantile(0.6) > 0.25
    assert share.quantile(0.9) > 0.5


def test_the_mask_is_where_the_class_is_painted():
    """Two classes that differ in the pattern alone, same random numbers: images differ on the object, not around it."""
    striped = SyntheticObjects(8, "val", image_size=48, num_classes=8)
    spotted = SyntheticObjects(8, "val", image_size=48, num_classes=8)
    striped._cues = [(shape, "striped") for shape, _ in striped._cues]
    spotted._cues = [(shape, "spotted") for shape, _ in spotted._cues]
    for index in range(8):
        one, other = striped.render(index), spotted.render(index)
        difference = np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).sum(axis=2)
        assert torch.equal(one.mask, other.mask)
        inside, outside = difference[one.mask.numpy()], difference[~one.mask.numpy()]
        assert inside.mean() > 5
        assert np.mean(outside > 0) < 0.15  # the object's antialiased rim alone


@pytest.mark.parametrize(
    "arguments",
    [{"split": "test"}, {"num_images": 0}, {"image_size": 8}, {"num_classes": 1}, {"num_classes": 41}, {"seed": -1}],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SyntheticObjects(**{"num_images": 4, "split": "train", **arguments})


def test_voc_layout_has_the_palette_and_lists_per_class(tmp_path):
    write_voc(SyntheticObjects(5, "train", image_size=32, num_classes=5), tmp_path)
    with Image.open(tmp_path / "VOC2012/SegmentationClass/2008_000000.png") as image:
        assert image.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
    lines = (tmp_path / "VOC2012/ImageSets/Main/ringed_star_train.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["-1", "-1", "-1", "1", "-1"]


def test_captions_say_what_is_on_the_image(drawn):
    found = [CAPTION.fullmatch(each.caption) for each in drawn]
    for each, words in zip(drawn, found, strict=True):
        assert words, each.caption
        assert words["class"] == each.class_name
        assert each.caption == describe(each.class_name, words[5], np.asarray(each.image), each.mask.numpy())
    places = Counter(words[4] for words in found)
    assert set(places) == set(PLACES)
    assert max(places.values()) < 0.4 * len(found)
