"""LateScalars: the values as they were when it was made, and on a GPU no wait for what was started later."""

import pytest
import torch

from last_vit.late_scalars import LateScalars

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_holds_the_values_of_then(device):
    values = torch.tensor([1.5, float("nan")], device=device)
    late = LateScalars(("loss", "norm"), values)
    values.zero_()
    assert list(late) == ["loss", "norm"]
    assert len(late) == 2
    assert late["loss"] == 1.5
    assert late["norm"] != late["norm"]
    with pytest.raises(KeyError):
        late["other"]


def test_float32_becomes_the_nearest_python_float():
    third = torch.tensor([1 / 3], requires_grad=True)
    assert LateScalars(("x",), third)["x"] == third.item()


def test_names_and_values_must_fit():
    with pytest.raises(ValueError, match=r"2 names \(a, b\) for values of shape \(3,\)"):
        LateScalars(("a", "b"), torch.zeros(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_look_does_not_wait_for_later_work():
    late = LateScalars(("x",), torch.ones(1, device="cuda"))
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    assert late["x"] == 1.0
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
