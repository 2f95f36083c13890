"""Coarse segmentation by hand and against a plain loop: regions, void pixels, the best of several maps."""

import pytest
import torch
from coarse_seg import CoarseSegmentation

CLASSES = torch.tensor([[0, 3, 3, 255], [0, 3, 5, 5]], dtype=torch.uint8)
OBJECTS = torch.tensor([[0, 1, 2, 255], [0, 1, 3, 3]], dtype=torch.uint8)


def plain_score(maps, labels):
    """Mean over regions of the best map's Jaccard index, pixel by pixel."""
    scores = []
    for region in sorted(set(labels.flatten().tolist()) - {0, 255}):
        best = 0.0
        for single in maps:
            both = either = 0
            for inside, label in zip(single.flatten().tolist(), labels.flatten().tolist(), strict=True):
                if label == 255:
                    continue
                both += inside and label == region
                either += inside or label == region
            best = max(best, both / either)
        scores.append(best)
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("protocol", "labels"),
    [("class", CLASSES), ("object", OBJECTS), ("union", (CLASSES > 0) * (CLASSES % 255 > 0) * 1)],
)
def test_scores_are_those_of_a_plain_loop(protocol, labels):
    labels = torch.where(CLASSES == 255, 255, labels)
    for seed in range(5):
        maps = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(seed)) > 0.5
        assert CoarseSegmentation(protocol).update(maps, CLASSES, OBJECTS) == pytest.approx(plain_score(maps, labels))


def test_regions_of_the_protocols():
    everything = torch.ones(1, 2, 4, dtype=torch.bool)  # 7 known pixels, of which 5 are object
    found = {
        name: CoarseSegmentation(name).update(everything, CLASSES, OBJECTS) for name in ("union", "class", "object")
    }
    assert found["union"] == pytest.approx(5 / 7)
    assert found["class"] == pytest.approx((3 / 7 + 2 / 7) / 2)
    assert found["object"] == pytest.approx((2 / 7 + 1 / 7 + 2 / 7) / 3)


def test_a_perfect_map_scores_one_whatever_it_says_of_void():
    for void in (False, True):
        perfect = (CLASSES > 0) & (CLASSES != 255)
        perfect[0, 3] = void
        assert CoarseSegmentation("union").update(perfect[None], CLASSES, OBJECTS) == 1.0


def test_images_add_up_and_empty_ones_are_left_out():
    metric = CoarseSegmentation("object")
    half = torch.zeros(1, 2, 4, dtype=torch.bool)
    half[0, 0, 1] = True
    scores = [metric.update(half, CLASSES, OBJECTS), metric.update(torch.zeros_like(half), CLASSES, OBJECTS)]
    assert metric.update(half, CLASSES * 0, OBJECTS * 0) is None
    assert metric.update(half, CLASSES * 0 + 255, OBJECTS * 0 + 255) is None
    assert scores == [pytest.approx(0.5 / 3), 0.0]
    assert metric.compute() == {
        "miou": pytest.approx(100 * sum(scores) / 2),
        "num_images": 2,
        "num_empty": 2,
        "num_regions": 6,
    }


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="protocol must be one of union, class, object, got 'crate'"):
        CoarseSegmentation("crate")
    with pytest.raises(ValueError, match=r"maps must be bool \[M, H, W\]"):
        CoarseSegmentation("union").update(torch.rand(1, 2, 4), CLASSES, OBJECTS)
    with pytest.raises(ValueError, match=r"must be of one size"):
        CoarseSegmentation("union").update(torch.ones(1, 2, 2, dtype=torch.bool), CLASSES, OBJECTS)
    with pytest.raises(ValueError, match="zero images"):
        CoarseSegmentation("union").compute()
