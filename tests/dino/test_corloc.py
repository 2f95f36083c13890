"""CorLoc by hand: which images count, what a hit is, classes, and how counts add up."""

import pytest
import torch
from corloc import CorLoc

OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])


def test_a_box_is_right_from_half_an_overlap_on():
    metric = CorLoc()
    assert metric.update((0, 0, 10, 5), OBJECTS) == pytest.approx(0.5)  # exactly half: right
    assert metric.update((0, 0, 10, 4.9), OBJECTS) == pytest.approx(0.49)
    assert metric.update((20, 20, 40, 40), OBJECTS) == 1.0  # any object will do
    assert metric.update((50, 50, 60, 60), OBJECTS) == 0.0
    assert metric.update((0, 0, 1, 1), OBJECTS[:0]) == 0.0  # no object: counted, never hit
    result = metric.compute()
    assert result["corloc"] == pytest.approx(100 * 2 / 5)
    assert result["mean_iou"] == pytest.approx(100 * (0.5 + 0.49 + 1) / 5)
    assert result["num_images"] == 5


def test_classes_count_images_that_show_them():
    metric = CorLoc(["cat", "dog", "sheep"])
    labels = torch.tensor([0, 1])
    metric.update((0, 0, 10, 10), OBJECTS, labels)  # finds the cat, not the dog
    metric.update((0, 0, 10, 10), OBJECTS, torch.tensor([1, 1]))  # finds one of two dogs
    metric.update((90, 90, 99, 99), OBJECTS[:0], labels[:0])
    assert metric.compute_by_class() == {"cat": (100.0, 1), "dog": (50.0, 2)}
    assert metric.compute()["corloc"] == pytest.approx(200 / 3)


def test_errors_say_what_is_wrong():
    metric = CorLoc(["cat"])
    with pytest.raises(ValueError, match="one label per object: 2 objects, labels None"):
        metric.update((0, 0, 1, 1), OBJECTS)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\), got \[0, 3\]"):
        metric.update((0, 0, 1, 1), OBJECTS, torch.tensor([0, 3]))
    for box in ((0, 0, 0, 5), (0, 0, float("nan"), 5), (0, 0, 5)):
        with pytest.raises(ValueError, match="the predicted box must be"):
            CorLoc().update(box, OBJECTS)
    with pytest.raises(ValueError, match="zero images"):
        CorLoc().compute()
