"""The training order as a pure function of (seed, position), and the loaders built on it."""

import random
from itertools import chain, islice

import pytest
import torch
from torch.utils.data import Dataset

from last_vit.data import loaders
from last_vit.data.loaders import PositionSampler, SeededSamples, build_test_loader, build_train_loader


class Augmented(Dataset):
    """Samples that show their index and what they drew."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"index": index, "noise": torch.rand(3), "python": random.random()}  # noqa: S311


def _batches(count, **arguments):
    return list(islice(build_train_loader(Augmented(10), **arguments), count))


def _assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_every_epoch_visits_each_index_once_in_another_order():
    samples = SeededSamples(Augmented(10), seed=3)
    epochs = [[samples.index_at(position) for position in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [SeededSamples(Augmented(10), seed=4).index_at(position) for position in range(10)]


def test_a_batch_may_cross_epochs_and_exceed_the_data_set():
    (batch,) = _batches(1, batch_size=25, num_workers=0)
    assert sorted(batch["index"][:10].tolist()) == sorted(batch["index"][10:20].tolist()) == list(range(10))


def test_ranks_together_read_what_one_process_reads():
    whole = list(islice(PositionSampler(6), 4))
    parts = [list(islice(PositionSampler(2, rank, 3), 4)) for rank in range(3)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    assert list(chain(*whole)) == list(range(24))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_is_the_tail_of_the_whole_run(num_workers):
    whole = _batches(7, batch_size=4, num_workers=0)
    _assert_equal(_batches(4, batch_size=4, num_workers=num_workers, start_iteration=3), whole[3:])
    loader = build_train_loader(Augmented(10), batch_size=4, num_workers=num_workers)
    loader.batch_sampler.start_iteration = 5
    _assert_equal(list(islice(loader, 2)), whole[5:])


def test_augmentation_differs_between_epochs_and_seeds():
    samples = SeededSamples(Augmented(1), seed=0)
    assert samples[0]["index"] == samples[1]["index"] == 0
    assert not torch.equal(samples[0]["noise"], samples[1]["noise"])
    assert samples[0]["python"] != samples[1]["python"]
    assert torch.equal(samples[0]["noise"], samples[0]["noise"])
    assert not torch.equal(samples[0]["noise"], SeededSamples(Augmented(1), seed=1)[0]["noise"])


def test_loading_leaves_the_processs_random_state_alone():
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(1), random.random()  # noqa: S311
    torch.manual_seed(0)
    random.seed(0)
    _batches(3, batch_size=4, num_workers=0)
    list(build_test_loader(list(range(5)), batch_size=2, num_workers=0))
    assert (torch.rand(1), random.random()) == expected  # noqa: S311


@pytest.mark.parametrize(("length", "world_size"), [(10, 3), (2, 5)])
def test_test_loaders_read_everything_once(monkeypatch, length, world_size):
    seen = []
    monkeypatch.setattr(loaders, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        batches = list(build_test_loader(list(range(length)), batch_size=2, num_workers=0))
        seen += [index for batch in batches for index in batch.tolist()]
    assert seen == list(range(length))


def test_train_loader_takes_rank_and_world_size(monkeypatch):
    (whole,) = _batches(1, batch_size=4, num_workers=0)
    monkeypatch.setattr(loaders, "world_size", lambda: 2)
    monkeypatch.setattr(loaders, "rank", lambda: 1)
    _assert_equal(_batches(1, batch_size=2, num_workers=0), [{key: value[2:] for key, value in whole.items()}])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="positive"):
        PositionSampler(0)
    with pytest.raises(ValueError, match="empty"):
        SeededSamples(Augmented(0), 0)
