"""The GPU's pooling bench where there is no GPU: it says so, and its judge of a selection knows right from wrong."""

import bench_pooling_gpu
import pytest
import torch

from last_vit import last_select


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
