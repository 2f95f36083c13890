"""Top-k accuracy: known values, batches, edges."""

import pytest
import torch

from last_vit.metrics import TopK

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 0, 1, 0])


def test_known_values_in_percent():
    metric = TopK(ks=(1, 2, 5))  # more than there are classes is always a hit
    metric.update(LOGITS, LABELS)
    assert metric.compute() == {"acc1": 50.0, "acc2": 75.0, "acc5": 100.0, "num_images": 4}


def test_batches_add_up_and_dtypes_do_not_matter():
    whole, parts = TopK(), TopK()
    whole.update(LOGITS, LABELS)
    for start, stop in ((0, 1), (1, 4), (4, 4)):
        parts.update(LOGITS[start:stop].bfloat16(), LABELS[start:stop])
    assert whole.compute() == parts.compute()


def test_errors():
    with pytest.raises(ValueError, match="zero images"):
        TopK().compute()
    metric = TopK()
    metric.update(LOGITS * torch.nan, LABELS)
    with pytest.raises(ValueError, match="4 of 4 images have NaN"):
        metric.compute()
    with pytest.raises(ValueError, match=r"labels \[B\]"):
        TopK().update(LOGITS, LABELS[:2])
