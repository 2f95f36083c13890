"""The norm of a layer: plain in one process, synchronised over NCCL, the same keys in all cases."""

import pytest
import torch
from detectron2.layers import batch_norm, get_norm
from fvit import fvit_layers
from fvit.fvit_layers import RegionSyncBatchNorm, choose_norm


@pytest.mark.parametrize(
    ("world_size", "backend", "expected"),
    [(1, None, ("BN", "BN")), (2, "gloo", ("BN", "BN")), (8, "nccl", ("SyncBN", RegionSyncBatchNorm))],
)
def test_choice(monkeypatch, world_size, backend, expected):
    monkeypatch.setattr(fvit_layers.comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    assert (choose_norm("auto"), choose_norm("auto", may_be_empty=True)) == expected
    for name in expected:
        assert get_norm(name, 4).state_dict().keys() == torch.nn.BatchNorm2d(4).state_dict().keys()


def test_a_named_norm_stays():
    assert [choose_norm(name) for name in ("", "GN", "FrozenBN")] == ["", "GN", "FrozenBN"]


def test_plain_norm_takes_no_regions():
    norm = get_norm(choose_norm("auto", may_be_empty=True), 4).train()
    norm(torch.zeros(0, 4, 7, 7)).sum().backward()
    assert torch.isfinite(norm.running_mean).all()
    assert torch.isfinite(norm.running_var).all()


def test_the_norm_of_regions_is_exact_on_bfloat16(monkeypatch):
    """Two processes with the same regions; means far from zero, as after a bias has been learned."""
    monkeypatch.setattr(batch_norm.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "differentiable_all_reduce", lambda values: 2 * values)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    x = (0.3 * torch.randn(64, 16, 7, 7) + torch.linspace(3, 12, 16)[:, None, None]).bfloat16().requires_grad_()
    norm = RegionSyncBatchNorm(16).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    expected = torch.nn.functional.batch_norm(x.detach().float(), None, None, training=True)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.01)
    assert norm(x[:0]).shape == (0, 16, 7, 7)
    found.float().square().sum().backward()
    assert x.grad.isfinite().all()
