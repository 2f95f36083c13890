"""Ratios in records and back, README's speed table, the picture."""

import json
from dataclasses import replace
from pathlib import Path

import figure_style
import make_results_tables
import plot_speed
import pytest
from speed_results import SpeedRatio, hardware_words, read_speed_ratios, speed_entries

from last_vit.results import read_results, write_result

README = "# Title\n\n<!-- results:speed -->\nold\n<!-- /results -->\ntail\n"
STEP = SpeedRatio("step", "our step against a plain one", 1.25, 1.0, 1.5, 1.3)
SHARE = SpeedRatio("share", "LaSt's part of it", 0.7, 0.6, 0.8, 3.0, is_limit=True, unit="%")
RATE = SpeedRatio("rate", "images of a core", 1234.5, 1200.0, 1300.0, unit="images/s")
MEMORY = SpeedRatio("memory", "their memory over ours", 10.0, 10.0, 10.0, 2.0)


def write(directory, name="bench_step", ratios=(STEP, SHARE, RATE, MEMORY), device=None, **config):
    metrics, quantities = speed_entries(ratios)
    path = write_result(
        name,
        {**metrics, "bytes": 12.0},
        n_images=1,
        dataset="random images",
        config={"quantities": quantities, "processor": "Fast CPU", **config},
        checkpoint_sha256=None,
        seconds=1.0,
        device="cpu",
        table="speed",
        row=name.removesuffix("_cuda"),
        directory=directory,
    )
    if device is not None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": device}))
    return path


def test_ratios_come_back_as_they_were(tmp_path):
    write(tmp_path)
    (record,) = read_results(tmp_path)
    assert read_speed_ratios(record) == [STEP, SHARE, RATE, MEMORY]
    assert record.metrics["bytes"] == 12


def test_a_record_without_words_shows_its_names(tmp_path):
    write(tmp_path, quantities={})
    assert read_speed_ratios(read_results(tmp_path)[0])[0] == replace(STEP, words="step")


def test_a_record_without_spread_must_be_made_again(tmp_path):
    write(tmp_path, ratios=())
    with pytest.raises(
        ValueError, match=r"results/bench_step.json holds no ratio with its spread; run its bench again"
    ):
        read_speed_ratios(read_results(tmp_path)[0])


@pytest.mark.parametrize(
    ("ratio", "text", "goal", "verdict"),
    [
        (STEP, "1.25x (1.00 to 1.50)", "at least 1.3x", "BELOW GOAL"),
        (replace(STEP, median=1.3), "1.30x (1.00 to 1.50)", "at least 1.3x", "ok"),
        (SHARE, "0.70% (0.60 to 0.80)", "at most 3%", "ok"),
        (replace(SHARE, median=3.1), "3.10% (0.60 to 0.80)", "at most 3%", "ABOVE GOAL"),
        (RATE, "1,234 images/s (1,200 to 1,300)", "", ""),
        (MEMORY, "10.0x", "at least 2x", "ok"),
    ],
)
def test_words(ratio, text, goal, verdict):
    assert (str(ratio), ratio.goal_words(), ratio.verdict()) == (text, goal, verdict)


def test_hardware(tmp_path):
    write(tmp_path)
    write(tmp_path, "bench_step_cuda", device="NVIDIA H200")
    cpu, gpu = read_results(tmp_path)
    assert hardware_words(cpu).startswith("Fast CPU, ")
    assert hardware_words(gpu) == "NVIDIA H200"
    assert hardware_words(replace(cpu, config={})) == cpu.device


def test_table_has_a_row_per_ratio(tmp_path):
    write(tmp_path)
    write(tmp_path, "bench_step_cuda", (replace(STEP, median=2.0),), device="NVIDIA H200")
    text = make_results_tables.render_readme(README, read_results(tmp_path))
    assert text.startswith("# Title")
    assert text.endswith("<!-- /results -->\ntail\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 2 + 5
    step = ["our step against a plain one", "1.25x", "1.00x to 1.50x", "at least 1.3x", "**missed**"]
    assert rows[2][:5] == step
    assert rows[2][-1] == "[bench_step](results/bench_step.json)"
    assert rows[3][3:5] == ["at most 3%", "met"]
    assert rows[5][2] == ""  # a number without spread
    assert rows[6][4:6] == ["met", "NVIDIA H200"]


def test_table_needs_its_place_in_readme(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="results:speed"):
        make_results_tables.render_readme("# Title\n", read_results(tmp_path))


def test_picture_holds_goals_of_both_devices(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    write(results)
    write(results, "bench_step_cuda", (replace(STEP, median=2.0),), device="NVIDIA H200")
    write(results, "bench_other", (RATE,))
    figures = []
    monkeypatch.setattr(figure_style, "save_figure", lambda figure, path: figures.append(figure))
    plot_speed.main(["--results", str(results), "--figure", str(tmp_path / "speed.png")])
    assert "2 ratios of 1 benches" in capsys.readouterr().out
    panel = figures[0].axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [STEP.words, MEMORY.words]
    assert sorted(bar.get_x() + bar.get_width() for bar in panel.patches) == [1.25, 2.0, 10.0]
    notes = [text.get_text() for text in panel.texts]
    assert {"bench_step.py", "1.25x missed", "2.00x", "10.0x"} == set(notes)
    legend = [text.get_text() for text in panel.get_legend().get_texts()]
    assert legend[:2] == ["CPU", "GPU"]


def test_picture_is_written(tmp_path):
    write(tmp_path / "results")
    plot_speed.main(["--results", str(tmp_path / "results"), "--figure", str(tmp_path / "docs" / "speed.png")])
    assert (tmp_path / "docs" / "speed.png").stat().st_size > 1000


def test_picture_needs_records(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        plot_speed.main(["--results", str(tmp_path), "--figure", "speed.png"])
    assert stop.value.code == 2
    assert "run_all.py --record" in capsys.readouterr().err
    assert not Path("speed.png").exists()
