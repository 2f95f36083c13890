"""One log line per period with what one watches: progress, losses, learning rate, images/s, time left, accuracy."""

import datetime
import logging

import torch
from detectron2.utils.events import EventWriter, get_event_storage

logger = logging.getLogger("detectron2")
_WINDOW = 20
_EVALUATED = ("acc1", "acc5", "point_in_box")


class ProgressPrinter(EventWriter):
    """Log the medians of the last iterations.

    Args:
        max_iter: Iterations of the whole run, for the time left.
    """

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter
        self._last_shown = -1

    def write(self) -> None:
        """Log one line; nothing before the first iteration has finished."""
        storage = get_event_storage()
        histories, latest = storage.histories(), storage.latest()
        if "total_loss" not in histories:
            return

        def median(name: str) -> float:
            return histories[name].median(_WINDOW)

        done = min(storage.iter + 1, self.max_iter)
        parts = [f"iter {done}/{self.max_iter}"]
        if "time" in histories:
            seconds_left = median("time") * (self.max_iter - done)
            parts.append(f"eta {datetime.timedelta(seconds=int(seconds_left))}")
        parts += [f"{name} {median(name):.4f}" for name in histories if "loss" in name]
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.2e}")
        parts.append(f"{median('images_per_second'):.0f} img/s (data {1000 * median('data_time'):.0f} ms)")
        if torch.cuda.is_available():
            parts.append(f"max mem {torch.cuda.max_memory_allocated() >> 20} MiB")
        # latest() keeps an evaluation's value; show it on the first line after it only
        parts += [f"{k} {latest[k][0]:.2f}" for k in _EVALUATED if k in latest and latest[k][1] > self._last_shown]
        self._last_shown = storage.iter
        logger.info("  ".join(parts))
