"""Curves of the pooling benches: from a record to the panels of the speed picture."""

import figure_style
import plot_speed
import pytest
from pooling_curves import CurvePoint, middle_words, read_curves
from speed_results import SpeedRatio, speed_entries

from last_vit.results import read_results, write_result

MIDDLE = {"B": 4, "N": 196, "D": 768, "K": 7}
SIZES = {"B": [16, 1], "N": [49], "D": [192], "K": [98]}
SPEEDUP = SpeedRatio("speedup", "pooling against its straightforward version", 5.0, 4.0, 6.0, 6.0)


@pytest.fixture
def results(tmp_path):
    metrics, quantities = speed_entries([SPEEDUP])
    metrics |= {"curve_time_B4_N196_D768_K7": 1.0, "curve_memory_B4_N196_D768_K7": 1.25}
    for letter, sizes in SIZES.items():
        for size in sizes:
            shape = "_".join(f"{name}{number}" for name, number in {**MIDDLE, letter: size}.items())
            metrics |= {f"curve_time_{shape}": size / MIDDLE[letter], f"curve_memory_{shape}": 1.0 + size}
    write_result(
        "bench_pooling",
        metrics,
        n_images=1,
        dataset="random tokens",
        config={"quantities": quantities, "curves": {"middle": MIDDLE, **SIZES}},
        checkpoint_sha256=None,
        seconds=1.0,
        device="cpu",
        table="speed",
        row="bench_pooling",
        directory=tmp_path,
    )
    return tmp_path


def test_points_are_in_the_order_of_their_sizes(results):
    (record,) = read_results(results)
    curves = read_curves(record)
    assert list(curves) == ["B", "N", "D", "K"]
    assert curves["B"] == [CurvePoint(1, 0.25, 2.0), CurvePoint(4, 1.0, 1.25), CurvePoint(16, 4.0, 17.0)]
    assert curves["K"] == [CurvePoint(7, 1.0, 1.25), CurvePoint(98, 14.0, 99.0)]
    assert middle_words(record) == "B=4, N=196, D=768, K=7"


def test_each_letter_has_a_panel_below_the_bars(results, monkeypatch):
    figures = []
    monkeypatch.setattr(figure_style, "save_figure", lambda figure, path: figures.append(figure))
    plot_speed.main(["--results", str(results), "--figure", "speed.png"])
    bars, *panels = figures[0].axes
    assert [text.get_text() for text in bars.texts if "x" in text.get_text()] == ["5.00x missed"]
    assert [panel.get_xlabel()[0] for panel in panels] == ["B", "N", "D", "K"]
    time, memory = panels[0].get_lines()
    assert time.get_xydata().tolist() == [[1, 0.25], [4, 1.0], [16, 4.0]]
    assert memory.get_ydata().tolist() == [2.0, 1.25, 17.0]
