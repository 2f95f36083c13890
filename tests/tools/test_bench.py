"""Benches: fair turns, records that the tables read, and sides that compute the same on small inputs."""

import bench_data
import bench_lvis
import bench_pooling
import bench_report
import make_results_tables
import plot_speed
import pytest
import run_all
import torch
from bench_report import BenchReport, Ratio, alternate, peak_bytes, ratio
from speed_ratios import read_speed_ratios

from last_vit.pooling import last_pool
from last_vit.results import read_results

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    clock, calls = iter(range(1000)), []
    monkeypatch.setattr(bench_report.time, "process_time", lambda: next(clock))
    torch.set_num_threads(1)
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert times == {"a": [1] * 3, "b": [1] * 3}
    assert [sorted(calls[i : i + 2]) for i in range(0, 8, 2)] == [["a", "b"]] * 4
    assert len({tuple(calls[i : i + 2]) for i in range(0, 8, 2)}) == 2  # no side always goes first


def test_ratio_is_of_medians_and_its_spread_of_rounds():
    assert ratio([2, 4, 12], [1, 2, 3]) == Ratio(2, 2, 4)
    assert Ratio(2, 1, 3).times(100) == Ratio(200, 100, 300)


def test_peak_counts_what_is_held_at_once():
    assert 8000 <= peak_bytes(lambda: torch.zeros(1000) + 1) < 9000


def test_a_record_is_what_the_table_and_the_plot_read(capsys, monkeypatch, tmp_path):
    report = BenchReport("bench_x", CPU, recorded=True)
    report.describe("words", dataset="random", n_images=2)
    report.add("fast", "ours against theirs", Ratio(2.0, 1.5, 3.0), goal=1.8)
    report.add("share", "a share", 7.5, limit=5, unit="%")
    report.add("bytes", "no goal", 3.0, unit="inputs")
    report.finish()
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in printed[1:3]] == ["met", "MISSED"]
    (record,) = read_results()
    fast, share, size = read_speed_ratios(record)
    assert (fast.median, fast.low, fast.high, fast.goal_words(), fast.is_met) == (2, 1.5, 3, "at least 1.8x", True)
    assert (share.with_unit(7.5), share.goal_words(), share.is_met) == ("7.50%", "at most 5%", False)
    assert size.goal is None
    page = make_results_tables.render_page("<!-- results:speed -->\n<!-- /results -->", [record])
    assert "| ours against theirs | 2.00x | 1.50x to 3.00x | at least 1.8x | met |" in page
    monkeypatch.setattr(plot_speed, "SHOWN", (("bench_x", "fast"), ("bench_x", "share")))
    plot_speed.main(["--figure", "speed.png"])
    assert (tmp_path / "speed.png").stat().st_size > 1000
    monkeypatch.setattr(plot_speed, "SHOWN", (("bench_x", "slow"),))
    with pytest.raises(SystemExit):
        plot_speed.main([])
    assert "has no ratio slow; run" in capsys.readouterr().err


def test_nothing_is_written_without_record(tmp_path):
    BenchReport("bench_x", CPU, recorded=False).finish()
    assert not list(tmp_path.iterdir())


def test_the_straightforward_pooling_is_the_release():
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert torch.allclose(bench_pooling.straightforward_pool(x, 3), last_pool(x, 3), atol=1e-6)


def test_lvis_sides_agree_on_every_class(monkeypatch, capsys):
    monkeypatch.setattr(bench_lvis, "MAX_DETS", 20)
    monkeypatch.setattr(bench_lvis, "NUM_CLASSES", 12)
    monkeypatch.setattr(BenchReport, "size", lambda self, quick, recorded, on_gpu=None: min(quick, 6))
    bench_lvis.bench(BenchReport("bench_lvis", CPU, recorded=False))  # raises where they differ
    assert "evaluation of boxes" in capsys.readouterr().out


def test_our_reader_is_near_the_releases(monkeypatch, capsys):
    monkeypatch.setattr(BenchReport, "size", lambda self, quick, recorded, on_gpu=None: min(quick, 8))
    bench_data.bench(BenchReport("bench_data", CPU, recorded=False))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "mean difference" in line]
    assert line.endswith("met")


def test_an_unknown_bench_is_refused(refused):
    assert "no bench is called bench_poling; known: bench_pooling" in refused(run_all.main, "bench_poling")
