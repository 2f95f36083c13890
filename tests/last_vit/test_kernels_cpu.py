"""The CPU's way to the same token: against the formulas, ties, NaN, short floats, and which tokens it leaves to them.

What both ways promise is in test_pooling.py.
"""

import subprocess
import sys

import pytest
import torch
from pooling_parts import rand, reference_low_pass

from last_vit import last_pool, last_select, pooling, stability, vote_count
from last_vit.kernels import cpu
from last_vit.names import VARIANTS

# Several blocks; few channels; rows that are partitioned, not sorted.
SHAPES = [(3, 196, 768), (2, 9, 20), (1, 300, 64)]


@pytest.fixture
def formulas(monkeypatch):
    """last_pool and last_select by pooling.py alone."""

    def by_formulas(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setitem(pooling.KERNELS, "cpu", None)
            return function(*args, **kwargs)

    return by_formulas


def correlated(*shape):
    """Tokens whose neighbouring channels are alike, so that x_hat - x cancels, around a mean."""
    return (reference_low_pass(rand(*shape), "paper", shape[-1] / 4) + 0.3).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [rand, correlated])
def test_same_as_the_formulas(shape, variant, tokens, formulas):
    for top_k in (2, shape[1] // 2):
        x, y = tokens(*shape).requires_grad_(), tokens(*shape).requires_grad_()
        assert cpu.takes(x, top_k, 1.0, variant)
        pooled, expected = last_pool(x, top_k, variant=variant), formulas(last_pool, y, top_k, variant=variant)
        torch.testing.assert_close(pooled, expected, atol=2e-6, rtol=1e-5)
        ours = last_select(x, top_k, variant=variant)
        assert torch.equal(ours, formulas(last_select, x, top_k, variant=variant).sort(dim=1).values)
        pooled.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(x.grad, y.grad, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("top_k", [5, 8])
def test_of_equal_patches_the_first_are_kept(shape, top_k):
    batch, num_patches, num_channels = shape  # every patch four times
    x = rand(batch, -(-num_patches // 4), num_channels).repeat(1, 4, 1)[:, :num_patches].contiguous()
    expected = stability(x).sort(dim=1, descending=True, stable=True).indices[:, :top_k].sort(dim=1).values
    assert torch.equal(last_select(x, top_k), expected)
    torch.testing.assert_close(last_pool(x, top_k), x.gather(1, expected).mean(1))


def test_nan_is_never_hidden():
    x = rand(2, 9, 128)
    x[1, 2:6, 60] = float("nan")  # more than K
    assert vote_count(last_select(x, 3), 9).sum(1).tolist() == [3 * 128] * 2
    pooled = last_pool(x, 3)
    assert pooled[0].isfinite().all()
    assert pooled[1, 60].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype):
    x = (1000 * rand(2, 150, 192)).abs().to(dtype).requires_grad_()  # sums of 100 exceed float16
    pooled = last_pool(x, 100)
    assert torch.equal(last_select(x, 100), last_select(x.float(), 100))
    torch.testing.assert_close(pooled, last_pool(x.float(), 100).to(dtype))
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    expected = torch.zeros(x.shape).scatter_(1, last_select(x, 100), 1 / 100)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), expected, rtol=5e-3, atol=0)


def test_operators_keep_their_promises():
    score, operators = rand(2, 9, 6), torch.ops.last_vit
    torch.library.opcheck(operators.keep_largest.default, (score, 3))
    torch.library.opcheck(operators.list_kept.default, (operators.keep_largest(score, 3), 3))


def test_pooling_loads_no_compiler():
    """Which takes seconds; a command line that pools once should not wait for it."""
    code = "import sys, torch; from last_vit import last_pool; last_pool(torch.rand(1, 9, 8), 3)"
    code += "; print('torch._dynamo' in sys.modules, 'last_vit.kernels.cpu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_which_tokens_it_leaves_to_the_formulas(monkeypatch):
    x = rand(1, 4, 6)
    assert not cpu.takes(x, 1, 1.0, "release")
    assert not cpu.takes(x[:0], 2, 1.0, "release")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert not cpu.takes(x, 2, 1.0, "release")


@pytest.mark.parametrize("missing", ["last_vit.kernels", "numpy"])
def test_pooling_goes_on_without(missing, monkeypatch, formulas):
    x = rand(2, 9, 20)
    expected = formulas(last_pool, x, 3)
    monkeypatch.delitem(pooling.KERNELS, "cpu", raising=False)
    monkeypatch.delitem(sys.modules, "last_vit.kernels.cpu")
    monkeypatch.setitem(sys.modules, missing, None)
    assert torch.equal(last_pool(x, 3), expected)
    assert pooling.KERNELS["cpu"] is None
