"""The pooling bench runs whole on small tokens, and both of its sides compute the same."""

from pathlib import Path

import bench_pooling
import pytest
import torch
from speed_results import read_speed_ratios
from torchvision.models import VisionTransformer

from last_vit import last_pool
from last_vit.results import read_results


@pytest.mark.parametrize("top_k", [1, 5])
def test_both_sides_compute_the_same(top_k):
    x = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, plain = (bench_pooling.step(pool, x, top_k)() for pool in (last_pool, bench_pooling.straightforward_pool))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(last_pool(x, top_k), bench_pooling.straightforward_pool(x, top_k))


def test_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_pooling, "B", 2)
    monkeypatch.setattr(bench_pooling, "D", 128)
    monkeypatch.setattr(bench_pooling, "MIDDLE", {"B": 1, "N": 12, "D": 128, "K": 2})
    monkeypatch.setattr(bench_pooling, "CURVES", {"N": (6,), "K": (1,)})
    monkeypatch.setattr(bench_pooling, "SHARE_BATCH", 1)

    def small_vit(size, patch, **_):
        return VisionTransformer(size, patch, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)

    monkeypatch.setattr(bench_pooling, "VisionTransformer", small_vit)
    try:
        bench_pooling.main(["--processes", "2", "--rounds", "1", "--record"])
    finally:
        torch.set_num_threads(threads)
    (record,) = read_results(Path("results"))
    found = {each.name: each for each in read_speed_ratios(record)}
    assert {name: each.goal for name, each in found.items() if each.goal} == {
        f"speedup_k{k}_threads{threads}": goal for k, goal in bench_pooling.GOALS.items() for threads in (1, 2)
    }
    assert {"bandwidth_k1_threads1", "memory_k98", "memory_plain_k98", "share_vits16_k7"} <= set(found)
    assert record.config["curves"] == {"middle": bench_pooling.MIDDLE, "N": [6], "K": [1]}
    assert record.metrics["curve_time_B1_N12_D128_K2"] == 1
    assert record.metrics["curve_memory_B1_N6_D128_K2"] > 0
    assert record.metrics["copy_gb_per_second_threads1"] > 0
