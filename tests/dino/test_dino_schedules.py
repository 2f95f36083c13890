"""Schedules against the golden ones, their ends, and their errors."""

import numpy as np
import pytest
from dino_parts import golden
from dino_schedules import cosine_schedule, temperature_schedule


def test_golden():
    vectors = {name: tensor.numpy() for name, tensor in golden("dino_schedules").items()}
    np.testing.assert_allclose(cosine_schedule(1e-3, 1e-6, 12, 7, 3), vectors["lr"], rtol=1e-12)
    np.testing.assert_allclose(cosine_schedule(0.04, 0.4, 12, 7), vectors["wd"], rtol=1e-12)
    np.testing.assert_allclose(cosine_schedule(0.996, 1.0, 12, 7), vectors["mom"], rtol=1e-12)
    np.testing.assert_allclose(temperature_schedule(0.04, 0.07, 3, 10), vectors["temps"], rtol=1e-12)


def test_ends():
    lr = cosine_schedule(1.0, 0.1, 5, 10, 2)
    assert len(lr) == 50
    assert (lr[0], lr[19], lr[20]) == (0.0, 1.0, 1.0)
    assert lr[-1] == pytest.approx(0.1, abs=0.01)
    assert (np.diff(lr[20:]) < 0).all()
    assert len(cosine_schedule(1.0, 0.1, 2, 10, 2)) == 20  # a warm-up and nothing else
    assert temperature_schedule(0.04, 0.07, 0, 3).tolist() == [0.07] * 3


@pytest.mark.parametrize(
    "schedule", [lambda: cosine_schedule(1, 0, 5, 10, 6), lambda: temperature_schedule(0.1, 1, 6, 5)]
)
def test_warm_up_longer_than_the_training(schedule):
    with pytest.raises(ValueError, match=r"\[0, 5\].*got 6 epochs"):
        schedule()
