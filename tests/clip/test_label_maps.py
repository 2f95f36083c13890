"""Labels from maps taken a few names at a time, against the published rule on all probabilities at once in float64."""

import pytest
import torch
from label_maps import LabelRule, label_pixels
from torch.nn import functional as F

SYNONYMS = [0, 0, 0, 1, 2, 2, 3, 4]


class Maps:
    """Maps in memory."""

    def __init__(self, maps):
        self.maps, self.output_hw = maps, tuple(maps.shape[1:])

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, names):
        return self.maps[names].clone()


def plain_labels(maps, rule):
    """Softmax over all names, best name of a class, area and probability thresholds: the published order."""
    probabilities = (maps.double() * rule.logit_scale).softmax(dim=0)
    classes = torch.tensor(rule.class_of_name)
    best = torch.stack([probabilities[classes == c].amax(dim=0) for c in range(rule.num_classes)])
    if rule.area_threshold is not None:
        area = F.one_hot(best.argmax(dim=0), rule.num_classes).sum((0, 1)).double()
        area[0] = 0
        is_dropped = area <= rule.area_threshold * area.sum()
        is_dropped[0] = False
        best[is_dropped] = 0
    label = best.argmax(dim=0)
    label[best.amax(dim=0) < rule.prob_threshold] = 0
    return label


def smooth_maps(num_names, seed=0, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, num_names, 5, 6, generator=generator) * spread
    return F.interpolate(coarse, size=(37, 45), mode="bilinear")[0]


@pytest.mark.parametrize("chunk_names", [1, 3, 100])
@pytest.mark.parametrize("prob_threshold", [0.0, 0.6])
@pytest.mark.parametrize("area_threshold", [None, 0.1])
def test_it_is_the_published_rule(chunk_names, prob_threshold, area_threshold):
    for seed in range(5):
        maps = smooth_maps(len(SYNONYMS), seed)
        rule = LabelRule(SYNONYMS, 40.0, prob_threshold, area_threshold)
        found = label_pixels(Maps(maps), rule, chunk_bytes=chunk_names * 4 * 37 * 45)
        assert found.dtype == torch.int64
        assert torch.equal(found, plain_labels(maps, rule))


def test_extreme_scores_neither_overflow_nor_vanish_and_the_denominator_holds_all_names():
    scores, synonyms = [-1.0, 1.0, 0.99], [0.0, 0.5, 0.5]  # two names share the mass, though their class is sure
    for values, classes, scale, threshold, expected in (
        (scores, [0, 1, 2], 1e4, 0.6, 1),
        (scores, [0, 1, 2], 100.0, 0.6, 1),
        (scores, [0, 1, 2], 10.0, 0.6, 0),
        (synonyms, [0, 1, 1], 40.0, 0.45, 1),
        (synonyms, [0, 1, 1], 40.0, 0.6, 0),
    ):
        maps = torch.tensor(values)[:, None, None].expand(3, 2, 2)
        assert (label_pixels(Maps(maps), LabelRule(classes, scale, threshold), chunk_bytes=1) == expected).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 40.0), "every class from 0 on needs a name"),
        (([0, 2], 40.0), r"names of the classes \[0, 2\]"),
        (([0], 0.0), "logit scale must be positive"),
        (([0], 40.0, 1.0), r"probability threshold must be in \[0, 1\), got 1.0"),
        (([0], 40.0, 0.1, -0.1), "area threshold"),
    ],
)
def test_rules_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelRule(*arguments)
