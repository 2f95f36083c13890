"""Time and memory of pooling over B, N, D and K, as the pooling benches record them: read, and drawn in four panels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from last_vit.results import ResultRecord

LETTERS = {"B": "B, images", "N": "N, patches", "D": "D, channels", "K": "K, patches kept"}


class CurvePoint(NamedTuple):
    """One shape.

    Attributes:
        size: The letter's.
        time: Forward and backward pass, per value of x, over that of the middle shape.
        memory: Beyond x, in sizes of x.
    """

    size: int
    time: float
    memory: float


def read_curves(record: "ResultRecord") -> dict[str, list[CurvePoint]]:
    """Points of each letter of B, N, D and K by size; the middle shape is one of every letter's. Empty without curves.

    Args:
        record: Of bench_pooling.py or bench_pooling_gpu.py, whose config holds the shapes under "curves".
    """
    shapes = record.config.get("curves")
    if not shapes:
        return {}
    middle = shapes["middle"]
    return {
        letter: [_point(record.metrics, middle, letter, size) for size in sorted({middle[letter], *shapes[letter]})]
        for letter in LETTERS
    }


def _point(metrics: Mapping[str, float], middle: Mapping[str, int], letter: str, size: int) -> CurvePoint:
    shape = "_".join(f"{name}{number}" for name, number in {**middle, letter: size}.items())
    return CurvePoint(size, metrics[f"curve_time_{shape}"], metrics[f"curve_memory_{shape}"])


def middle_words(record: "ResultRecord") -> str:
    """The middle shape: "B=4, N=196, D=768, K=7"."""
    return ", ".join(f"{letter}={size}" for letter, size in record.config["curves"]["middle"].items())


def draw_curves(panels: Sequence["Axes"], records: Mapping[str, "ResultRecord"], colors: Mapping[str, str]) -> None:
    """A panel per letter, time as a solid line and memory as a dashed one.

    Args:
        panels: Four.
        records: With curves, by the side's name.
        colors: By the same names.
    """
    for panel, (letter, words) in zip(panels, LETTERS.items(), strict=True):
        ticks: set[int] = set()
        for side, record in records.items():
            sizes, times, memory = zip(*read_curves(record)[letter], strict=True)
            ticks |= set(sizes)
            panel.plot(sizes, times, "o-", color=colors[side], markersize=3, linewidth=1.2, label=f"time, {side}")
            panel.plot(sizes, memory, "s--", color=colors[side], markersize=3, linewidth=1.0, label=f"memory, {side}")
        panel.set_xscale("log", base=2)
        apart = [size for size in sorted(ticks) if not any(size / 1.2 < other < size for other in ticks)]
        panel.set_xticks(apart, [f"{size:,}" for size in apart], fontsize=7, rotation=45)
        panel.set_xticks([], minor=True)
        panel.set_ylim(0, None)
        panel.set_xlabel(words)
    panels[0].set_ylabel("time per value (middle: 1)\nmemory beyond x (x: 1)")
    panels[-1].legend(loc="upper right")
