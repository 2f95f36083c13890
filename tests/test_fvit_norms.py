"""The norm of a layer: plain in one process, synchronised over NCCL, the same keys in all cases."""

import pytest
import torch
from detectron2.layers import get_norm
from fvit import fvit_norms
from fvit.fvit_norms import choose_norm


@pytest.mark.parametrize(
    ("world_size", "backend", "expected"),
    [(1, None, ("BN", "BN")), (2, "gloo", ("BN", "BN")), (8, "nccl", ("SyncBN", "naiveSyncBN_N"))],
)
def test_choice(monkeypatch, world_size, backend, expected):
    monkeypatch.setattr(fvit_norms.comm, "get_world_size", lambda: world_size)
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
