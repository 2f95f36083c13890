"""Seeds, devices and the one-process case of everything distributed."""

import os
import random

import numpy as np
import pytest
import torch
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader

from last_vit.command_line import add_loading_flags, command_parser, cores_at_hand
from last_vit.runtime import (
    all_reduce_sum,
    describe_device,
    error_text,
    get_logger,
    is_main_process,
    process_group,
    seed_everything,
    select_device,
)


def test_seed_covers_every_generator():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311

    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    with pytest.raises(ValueError, match=r"seed must be in .*, got -1"):
        seed_everything(-1)


def test_devices():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "cpu" in describe_device("cpu")
    for name in ("gpu", f"cuda:{torch.cuda.device_count()}", "cuda:200", "cuda:99999999999"):
        with pytest.raises(ValueError, match=f"device.*{name}"):
            select_device(name)


def test_one_process():
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        counters = torch.tensor([1.0, 2.0])
        assert all_reduce_sum(counters).tolist() == [1.0, 2.0]
        assert is_main_process()
    assert get_logger() is get_logger()
    assert [type(handler).__name__ for handler in get_logger().handlers].count("_ToStderr") == 1  # pytest adds its own


class Broken:
    """A data set whose only sample cannot be loaded."""

    def __init__(self, error: Exception, cause: Exception | None = None):
        self.error, self.cause = error, cause

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error from self.cause


@pytest.mark.parametrize(
    "dataset",
    [
        Broken(ValueError("a.jpg is truncated\nleave it out"), cause=ValueError("12 bytes missing")),
        Broken(UnidentifiedImageError("not an image: c.jpg")),
    ],
    ids=lambda dataset: type(dataset.error).__name__,
)
def test_error_text_is_the_message_in_whichever_process_it_was_raised(dataset):
    for num_workers in (0, 1):
        with pytest.raises(type(dataset.error)) as caught:
            next(iter(DataLoader(dataset, num_workers=num_workers)))
        assert ("Traceback" in str(caught.value)) == (num_workers == 1)
        assert error_text(caught.value) == str(dataset.error)
    assert error_text(ValueError("Caught in DataLoader")) == "Caught in DataLoader"


def test_loading_processes_are_the_cores_at_hand(monkeypatch):
    for cores, local, most, expected in [(2, 1, 8, 2), (64, 1, 8, 8), (64, 16, 8, 4), (2, 4, 8, 1), (64, 1, 12, 12)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        assert cores_at_hand(most) == expected
    parser = command_parser("x", "")
    add_loading_flags(parser)
    assert parser.parse_args([]).num_workers == cores_at_hand()
