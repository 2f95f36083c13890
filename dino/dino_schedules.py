"""DINO's schedules: numbers by iteration or epoch, computed once before training."""

import numpy as np


def cosine_schedule(
    base: float, final: float, epochs: int, iterations_per_epoch: int, warmup_epochs: int = 0
) -> np.ndarray:
    """Linear rise from 0 to `base`, then half a cosine from `base` to `final`; one value per iteration.

    Args:
        base: Value after the warm-up.
        final: Value that the last iteration nearly reaches.
        epochs: Of the whole training.
        iterations_per_epoch: At least 1.
        warmup_epochs: Part of `epochs`; its last iteration has `base`.

    Returns:
        float64 [epochs * iterations_per_epoch].

    Raises:
        ValueError: A longer warm-up than the training.
    """
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"the warm-up must be in [0, {epochs}] (the number of epochs), got {warmup_epochs} epochs")
    warmup = np.linspace(0, base, warmup_epochs * iterations_per_epoch)
    remaining = (epochs - warmup_epochs) * iterations_per_epoch
    angle = np.pi * np.arange(remaining) / max(1, remaining)
    return np.concatenate((warmup, final + 0.5 * (base - final) * (1 + np.cos(angle))))


def temperature_schedule(warmup_temp: float, temp: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """The teacher's temperature: linear from `warmup_temp` to `temp`, then constant; one value per epoch.

    Args:
        warmup_temp: Of the first epoch of the warm-up.
        temp: Of its last epoch, and of all after it.
        warmup_epochs: 0 for a constant.
        epochs: Of the whole training.

    Returns:
        float64 [epochs].

    Raises:
        ValueError: A longer warm-up than the training.
    """
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"the warm-up must be in [0, {epochs}] (the number of epochs), got {warmup_epochs} epochs")
    return np.concatenate((np.linspace(warmup_temp, temp, warmup_epochs), np.full(epochs - warmup_epochs, temp)))
