"""The GPU's pooling bench where there is no GPU: it says so; its judge knows right from wrong; it runs."""

import time
from pathlib import Path

import bench_pooling_gpu
import pytest
import torch
from bench_report import BenchParser, run_bench
from pooling_curves import read_curves
from speed_results import read_speed_ratios

from last_vit import last_pool, last_select
from last_vit.results import read_results


def test_refuses_without_a_gpu(capsys):
    with pytest.raises(SystemExit) as stop:
        bench_pooling_gpu.main(["--device", "cpu"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "needs a CUDA GPU" in line


@pytest.mark.parametrize("top_k", [1, 5])
def test_a_wrong_choice_is_told_from_a_right_one(top_k):
    x = torch.randn(2, 20, 96, generator=torch.Generator().manual_seed(0))
    topk_idx = last_select(x, top_k)
    assert bench_pooling_gpu.disagreement(x, topk_idx) == 0
    topk_idx[1, 0, 7] = x[1, :, 7].argmin()  # the lowest score of all, so never among the best
    assert bench_pooling_gpu.disagreement(x, topk_idx) > 0.1


class ClockEvent:
    """A CUDA event's stand-in for a CPU."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "ClockEvent") -> float:
        return 1000 * (end.seconds - self.seconds)


def test_parity_at_the_size_of_the_goals(monkeypatch):
    """In float32 a mean of 98 values is not exact; the formulas on a CPU must pass as the kernels on a GPU."""
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: function)
    bench_pooling_gpu.check_parity(torch.device("cpu"))
    monkeypatch.setattr(bench_pooling_gpu, "last_pool", lambda x, top_k: last_pool(x, top_k) * 1.001)
    with pytest.raises(ValueError, match="disagree with float64"):
        bench_pooling_gpu.check_parity(torch.device("cpu"))


def test_runs_whole_where_a_cpu_stands_in(monkeypatch, tmp_path, capsys):
    """No kernel runs here: this is the bench's own arithmetic, printing and record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "Event", ClockEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: function)
    monkeypatch.setattr(bench_pooling_gpu, "as_graph", lambda function: function)
    small = {"B": 2, "N": 12, "D": 64, "TOP_K": (1, 3, 12), "READS": {1: 1.5}, "FLUSH_BYTES": 16, "CURVE_ROUNDS": 1}
    curves = {"MIDDLE": {"B": 1, "N": 12, "D": 64, "K": 2}, "CURVES": {"B": (2,), "N": (6,), "D": (32,), "K": (1,)}}
    for name, value in (small | curves).items():
        monkeypatch.setattr(bench_pooling_gpu, name, value)

    def bench(args, report):
        report.describe("small", dataset="small", n_images=2, curves={"middle": curves["MIDDLE"], **curves["CURVES"]})
        bench_pooling_gpu.check_parity(report.device)
        bench_pooling_gpu.bench_speed(args.rounds, report)
        bench_pooling_gpu.bench_curves(report)

    run_bench(BenchParser("bench_small", "", rounds=2), bench, ["--device", "cpu", "--record"])
    assert "every side agrees with float64" in capsys.readouterr().out
    (record,) = read_results(Path("results"))
    ratios = {each.name: each for each in read_speed_ratios(record)}
    assert ratios["reads_k1"].is_limit
    assert (ratios["forward_k3_plain"].goal, ratios["both_k12_plain"].goal) == (10.0, None)
    assert record.metrics["us_forward_graph_k1"] > 0
    assert [point.size for point in read_curves(record)["N"]] == [6, 12]
    assert read_curves(record)["K"][1].time == 1.0
