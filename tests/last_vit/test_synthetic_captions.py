"""Captions of the synthetic images: words checked against hand-made colours, masks, and the drawn images."""

import colorsys
import re

import numpy as np
import pytest

from last_vit.data.synthetic import COLOURS, PLACES, SyntheticObjects, colour_name, describe, place_name

CAPTION = re.compile(
    rf"a photo of (an?) ({'|'.join(COLOURS)}) (?P<class>\w+ \w+) ({'|'.join(PLACES)}), on a (\w+) background"
)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 20, 20), "red"),
        ((90, 10, 12), "red"),
        ((230, 120, 20), "orange"),
        ((110, 70, 30), "brown"),
        ((240, 230, 30), "yellow"),
        ((100, 95, 20), "olive"),
        ((30, 160, 40), "green"),
        ((40, 210, 190), "turquoise"),
        ((10, 100, 100), "teal"),
        ((40, 70, 220), "blue"),
        ((130, 60, 230), "purple"),
        ((240, 80, 190), "pink"),
        ((100, 20, 80), "purple"),
        ((255, 0, 20), "red"),
        ((250, 250, 245), "white"),
        ((120, 120, 120), "gray"),
        ((30, 10, 10), "black"),
        ((0, 0, 0), "black"),
    ],
)
def test_colours(rgb, name):
    assert colour_name(np.full((5, 3), rgb, dtype=np.uint8)) == name


def test_colours_follow_the_hue_of_colorsys():
    """Around the circle, light and saturated, every hue's word is the one whose range colorsys' hue falls into."""
    ends = (15, 45, 68, 160, 195, 255, 290, 345, 360)
    words = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "red")
    for degree in range(1, 360, 7):
        rgb = np.round(255 * np.array(colorsys.hsv_to_rgb(degree / 360, 0.9, 0.9))).astype(np.uint8)
        assert colour_name(rgb[None]) == next(word for end, word in zip(ends, words, strict=True) if degree < end)


def test_most_pixels_decide_however_many():
    pixels = np.array([(200, 20, 20)] * 40 + [(30, 60, 220)] * 60, dtype=np.uint8)
    assert colour_name(pixels) == "blue"
    shuffled = np.random.default_rng(0).permutation(np.repeat(pixels, 100, axis=0))
    assert colour_name(shuffled) == "blue"


def test_places():
    for number, place in enumerate(PLACES):
        mask = np.zeros((30, 60), dtype=bool)
        row, column = divmod(number, 3)
        mask[10 * row : 10 * row + 10, 20 * column : 20 * column + 20] = True
        assert place_name(mask) == place
    mask = np.zeros((30, 60), dtype=bool)
    mask[29, 59] = True
    assert place_name(mask) == "in the lower right"
    assert place_name(np.ones((1, 1), dtype=bool)) == "in the middle"


def test_articles():
    mask = np.ones((4, 4), dtype=bool)
    orange = np.full((4, 4, 3), (230, 120, 20), dtype=np.uint8)
    assert describe("striped star", "cloudy", orange, mask).startswith(
        "a photo of an orange striped star in the middle"
    )


def test_captions_say_what_is_on_the_image():
    samples = SyntheticObjects(160, "val", image_size=32, num_classes=8)
    captions = []
    for index in range(len(samples)):
        rendered = samples.render(index)
        found = CAPTION.fullmatch(rendered.caption)
        assert found, rendered.caption
        assert found["class"] == rendered.class_name
        mask, pixels = rendered.mask.numpy(), np.asarray(rendered.image)
        assert rendered.caption == describe(rendered.class_name, found[5], pixels, mask)
        captions.append(rendered.caption)
    assert captions[:9] == [SyntheticObjects(9, "val", 32, 8).render(index).caption for index in range(9)]
    assert len(set(captions)) > 120
    places = [found[4] for found in map(CAPTION.fullmatch, captions)]
    assert set(places) == set(PLACES)
    assert max(map(places.count, PLACES)) < 0.4 * len(places)
