"""Sums over batches: exact, of declared shapes only, the same however the data are split."""

import pytest
import torch

from last_vit.metrics.summed_counters import SummedCounters, SummedTensors


def test_tensors_add_up_and_keep_their_shapes():
    generator = torch.Generator().manual_seed(0)
    histograms = torch.randint(0, 1000, (6, 3, 5), generator=generator)
    counts = torch.arange(6)
    whole, split = SummedTensors(histogram=(3, 5), num_images=()), SummedTensors(histogram=(3, 5), num_images=())
    whole.add(histogram=histograms.sum(0), num_images=counts.sum())
    for histogram, count in zip(histograms, counts, strict=True):
        split.add(histogram=histogram, num_images=count)
    for sums in (whole, split):
        totals = sums.totals()
        assert torch.equal(totals["histogram"], histograms.sum(0).double())
        assert totals["num_images"].shape == ()
        assert totals["num_images"] == 15


def test_sums_of_nothing_are_zero():
    assert torch.equal(SummedTensors(a=(2,), b=()).totals()["a"], torch.zeros(2, dtype=torch.float64))
    assert SummedCounters("hits").totals() == {"hits": 0.0}


@pytest.mark.parametrize("amounts", [{"a": torch.zeros(3)}, {"a": torch.zeros(2), "b": torch.zeros(())}, {}])
def test_other_names_or_shapes_are_refused(amounts):
    with pytest.raises(ValueError, match=r"sums of \{'a': \(2,\)\} were given"):
        SummedTensors(a=(2,)).add(**amounts)
