"""Seeds, devices and the one-process case of everything distributed."""

import random

import numpy as np
import pytest
import torch

from last_vit.runtime import (
    all_reduce_sum,
    describe_device,
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
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    with pytest.raises(ValueError, match="seed must be"):
        seed_everything(-1)


def test_devices():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "cpu" in describe_device("cpu")
    for name in ("gpu", "meta", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ValueError, match="device"):
            select_device(name)


def test_one_process():
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        counters = torch.tensor([1.0, 2.0])
        total = all_reduce_sum(counters)
        assert total is not counters
        assert total.tolist() == [1.0, 2.0]
        assert is_main_process()
    assert get_logger() is get_logger()
    assert len(get_logger().handlers) == 1
