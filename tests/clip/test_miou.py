"""mIoU by hand, against a plain float64 loop over images, and labels that do not count."""

import numpy as np
import pytest
import torch
from miou import MeanIoU


def plain_miou(pairs, num_classes, ignored=255):
    """Per-class IoU in numpy float64, class by class; NaN for 0/0."""
    inter, union = np.zeros(num_classes), np.zeros(num_classes)
    for prediction, label in pairs:
        known = label.numpy() != ignored
        for c in range(num_classes):
            guess, truth = (prediction.numpy() == c) & known, (label.numpy() == c) & known
            inter[c] += (guess & truth).sum()
            union[c] += (guess | truth).sum()
    with np.errstate(invalid="ignore"):
        return 100 * inter / union


def random_pairs(number, num_classes, seed=0, last_label=None):
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(number):
        shape = (7 + i, 11)
        label = torch.randint(0, last_label or num_classes, shape, generator=generator, dtype=torch.uint8)
        label[torch.rand(shape, generator=generator) < 0.2] = 255
        noise = torch.randint(0, last_label or num_classes, shape, generator=generator)
        copied = torch.rand(shape, generator=generator) < 0.5
        pairs.append((torch.where(copied & (label != 255), label.long(), noise), label))
    return pairs


def test_by_hand():
    metric = MeanIoU(4)
    prediction = torch.tensor([[0, 0, 1], [1, 2, 2]])
    label = torch.tensor([[0, 1, 1], [1, 1, 255]], dtype=torch.uint8)
    # class 0: 1/2, class 1: 2/4, class 2: 0/1 (the ignored pixel does not count), class 3: absent
    metric.update(prediction, label)
    found = metric.compute()
    assert found == {
        "miou": pytest.approx(100 / 3),
        "pixel_accuracy": pytest.approx(60),
        "mean_accuracy": pytest.approx((100 + 50) / 2),
        "num_absent": 1,
        "iou": [50.0, 50.0, 0.0, None],
    }


@pytest.mark.parametrize(("num_classes", "last_label"), [(2, None), (150, 30)])
def test_it_is_the_plain_version(num_classes, last_label):
    pairs = random_pairs(5, num_classes, last_label=last_label)
    metric = MeanIoU(num_classes)
    for prediction, label in pairs:
        metric.update(prediction, label)
    expected = plain_miou(pairs, num_classes)
    found = metric.compute()
    assert found["miou"] == pytest.approx(np.nanmean(expected))
    assert found["num_absent"] == np.isnan(expected).sum()
    np.testing.assert_allclose(np.array(found["iou"], dtype=float), expected, rtol=1e-12)


def test_errors_say_what_is_wrong():
    for wrong, name in (((0, 20), "1 pixels have labels"), ((-1, 3), "1 pixels have predictions")):
        metric = MeanIoU(20)
        metric.update(torch.tensor([wrong[0], 1]), torch.tensor([wrong[1], 255]))
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=rf"{name} that are no class: there are 20 \(0 to 19\)"):
            metric.compute()
    with pytest.raises(ValueError, match="zero pixels"):
        MeanIoU(20).compute()
