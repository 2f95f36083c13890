"""Assignment by IoU against a plain loop over objects, and where it differs from detectron2's matcher."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from fvit.fvit_layers import IoUMatcher


def plain(overlaps, negative_below, positive_from, low_quality, min_low_quality):
    """mmdet's MaxIoUAssigner as FACTS describe it, box by box; object index and label per box."""
    matches, labels = [], []
    for box in range(overlaps.shape[1]):
        best = max(range(overlaps.shape[0]), key=lambda place: overlaps[place, box].item())
        overlap = overlaps[best, box].item()
        label = 1 if overlap >= positive_from else 0 if overlap < negative_below else -1
        matches.append(best)
        labels.append(label)
    if low_quality:
        for place in range(overlaps.shape[0]):
            highest = overlaps[place].max().item()
            if highest >= min_low_quality:
                for box in range(overlaps.shape[1]):
                    if overlaps[place, box].item() == highest:
                        matches[box], labels[box] = place, 1
    return matches, labels


@pytest.mark.parametrize("options", [(0.3, 0.7, True, 0.3), (0.5, 0.5, False, 0.5), (0.5, 0.5, True, 0.5)])
def test_against_a_plain_loop(options):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        overlaps = (torch.rand(4, 30, generator=generator, dtype=torch.float64) ** 2 * 20).round() / 20  # with ties
        matches, labels = IoUMatcher(*options)(overlaps)
        expected_matches, expected_labels = plain(overlaps, *options)
        assert labels.tolist() == expected_labels
        assert matches.tolist() == expected_matches


def test_low_quality_needs_an_overlap_and_moves_the_match():
    # the second object's best box is the first box, which the first object overlaps more
    overlaps = torch.tensor([[0.6, 0.1, 0.0], [0.4, 0.2, 0.0], [0.0, 0.0, 0.2]])
    matches, labels = IoUMatcher(0.3, 0.7, True, 0.3)(overlaps)
    assert labels.tolist() == [1, 0, 0]
    assert matches[0] == 1
    theirs, their_labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(overlaps)
    assert theirs[0] == 0
    assert their_labels.tolist() == [1, 0, 1]


def test_without_objects_or_boxes():
    matcher = IoUMatcher(0.3, 0.7, True, 0.3)
    matches, labels = matcher(torch.zeros(0, 5))
    assert labels.tolist() == [0] * 5
    assert len(matches) == 5
    assert len(matcher(torch.zeros(3, 0))[0]) == 0
