"""The CPU's way to the same token: against the formulas and float64, ties, gradients, and which tokens it leaves."""

import os

import pytest
import torch
from test_pooling import rand, reference_low_pass
from torch.autograd import forward_ad

from last_vit import last_pool, last_select, pooling, pooling_cpu, pooling_formulas, vote_count
from last_vit.pooling import VARIANTS

# A matrix product per panel of 32 channels; the FFT; two panels, both at the ends; rows longer than numpy sorts.
SHAPES = [(2, 196, 768), (2, 9, 20), (3, 30, 64), (3, 30, 128), (1, 300, 192)]


@pytest.fixture
def formulas(monkeypatch):
    """last_pool and last_select by pooling_formulas.py."""

    def by_formulas(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(pooling, "_way", lambda *_: pooling_formulas)
            return function(*args, **kwargs)

    return by_formulas


@pytest.fixture
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def correlated(*shape, seed=0):
    """Tokens whose neighbouring channels are alike, so that x_hat - x cancels, around a mean."""
    return (reference_low_pass(rand(*shape, seed=seed), "paper", shape[-1] / 4) + 0.3).float()


def tied(shape, seed=0):
    """Every patch four times."""
    batch, num_patches, num_channels = shape
    return rand(batch, -(-num_patches // 4), num_channels, seed=seed).repeat(1, 4, 1)[:, :num_patches].contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [rand, correlated])
def test_same_as_the_formulas(shape, variant, tokens, formulas):
    for top_k in (1, 4, shape[1] // 2, shape[1] - 1):
        x, y = tokens(*shape).requires_grad_(), tokens(*shape).requires_grad_()
        pooled, expected = last_pool(x, top_k, variant=variant), formulas(last_pool, y, top_k, variant=variant)
        # where two scores are equal up to rounding, the one or the other patch may be kept
        is_close = torch.isclose(pooled, expected, atol=2e-6, rtol=1e-5)
        assert (~is_close).sum() <= 2
        pooled.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(
            x.grad.transpose(1, 2)[is_close], y.grad.transpose(1, 2)[is_close], atol=1e-7, rtol=1e-5
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [rand, correlated])
def test_choice_is_as_exact_as_with_the_fft(variant, tokens, formulas):
    x = tokens(2, 196, 768, seed=3)
    low_freq = reference_low_pass(x, variant)
    change = (low_freq - x.double()).abs()
    score = low_freq / (change + 1e-6) if variant == "paper" else x.double() / change
    for top_k in (1, 7, 98):
        exact = torch.zeros_like(score).scatter_(1, score.topk(top_k, dim=1).indices, 1.0)
        wrong = [
            int((exact - torch.zeros_like(exact).scatter_(1, chosen, 1.0)).clamp(min=0).sum())
            for chosen in (last_select(x, top_k, variant=variant), formulas(last_select, x, top_k, variant=variant))
        ]
        assert wrong[0] <= wrong[1] + 3, wrong
        assert wrong[0] <= 2e-4 * 2 * top_k * 768 + 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("top_k", [1, 5, 8])
def test_of_equal_patches_the_first_are_kept(shape, top_k):
    x = tied(shape)
    topk_idx = last_select(x, top_k)
    score = torch.zeros(shape)
    for block in pooling_cpu._blocks(x, shape[2] ** 0.5, "release"):
        score[block.images, :, block.channels] = block.score
    expected = score.sort(dim=1, descending=True, stable=True).indices[:, :top_k].sort(dim=1).values
    assert torch.equal(topk_idx, expected)
    torch.testing.assert_close(last_pool(x, top_k), x.gather(1, expected).mean(1))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-40])
def test_constant_tokens_keep_k_patches(value):
    x = torch.full((2, 9, 128), value)
    for top_k in (1, 4):
        assert vote_count(last_select(x, top_k), 9).sum(1).tolist() == [top_k * 128] * 2
        torch.testing.assert_close(last_pool(x, top_k), x[:, 0])


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("num_nan", [1, 4])
def test_nan_is_never_hidden(top_k, num_nan):
    x = rand(2, 9, 128)
    x[1, 2 : 2 + num_nan, 60] = float("nan")
    topk_idx = last_select(x, top_k)
    assert vote_count(topk_idx, 9).sum(1).tolist() == [top_k * 128] * 2
    pooled = last_pool(x, top_k)
    assert pooled[0].isfinite().all()
    assert pooled[1, 60].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 7])
def test_short_floats(dtype, top_k):
    x = rand(2, 50, 192).to(dtype).requires_grad_()
    pooled = last_pool(x, top_k)
    assert pooled.dtype == dtype
    assert torch.equal(last_select(x, top_k), last_select(x.float(), top_k))
    torch.testing.assert_close(pooled, last_pool(x.float(), top_k).to(dtype))
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    assert gradient.dtype == dtype
    expected = torch.zeros(x.shape).scatter_(1, last_select(x, top_k), 1 / top_k)
    torch.testing.assert_close(gradient.float(), expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("top_k", [1, 7, 98])
def test_one_image_equals_its_slice_of_a_batch(top_k):
    x = rand(8, 196, 768)
    for i in (0, 3, 7):
        assert torch.equal(last_select(x[i : i + 1], top_k), last_select(x, top_k)[i : i + 1])
        assert torch.equal(last_pool(x[i : i + 1], top_k), last_pool(x, top_k)[i : i + 1])


@pytest.mark.parametrize("top_k", [1, 7])
def test_views_of_the_encoder_output(top_k):
    """Tokens behind a prefix, and with the channels not side by side, are pooled as their copies are."""
    tokens = rand(3, 50, 192)
    for x in (tokens[:, 1:], rand(3, 192, 50).transpose(1, 2)):
        assert torch.equal(last_pool(x, top_k), last_pool(x.contiguous(), top_k))


@pytest.mark.parametrize("shape", [(5, 196, 768), (2, 300, 100)])
@pytest.mark.parametrize("top_k", [1, 7])
def test_threads_change_nothing(shape, top_k, threads_as_before):
    x, chosen = rand(*shape), []
    for num_threads in (1, 2, 3):  # from three on the sorting has threads of its own
        torch.set_num_threads(num_threads)
        chosen.append(last_select(x, top_k))
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


def test_less_exact_matrix_products_change_nothing():
    x = rand(2, 100, 768)
    exact = last_select(x, 7)
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        other = (exact != last_select(x, 7)).float().mean()
    finally:
        settings.fp32_precision = before
    assert other < 1e-3


def test_gradient_of_the_gradient():
    """The token is linear in x while the choice stands: d^2/dx^2 of its squares is 2/K^2 for kept pairs."""
    x = rand(1, 6, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(last_pool(x, 3).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    kept = torch.zeros(x.shape).scatter_(1, last_select(x, 3), 1.0)
    torch.testing.assert_close(second, kept * 2 / 3)


def test_backward_twice_through_one_graph():
    x = rand(2, 9, 128).requires_grad_()
    pooled = last_pool(x, 3).sum()
    first, second = (torch.autograd.grad(pooled, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("top_k", [1, 3])
def test_torch_func_goes_by_the_formulas(top_k):
    x = rand(2, 9, 128)
    expected = torch.zeros(x.shape).scatter_(1, last_select(x, top_k), 1 / top_k)
    torch.testing.assert_close(torch.func.grad(lambda t: last_pool(t, top_k).sum())(x), expected)
    _, tangent = torch.func.jvp(lambda t: last_pool(t, top_k), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones(2, 128))
    with forward_ad.dual_level():
        pooled = last_pool(forward_ad.make_dual(x, torch.ones_like(x)), top_k)
        torch.testing.assert_close(forward_ad.unpack_dual(pooled).tangent, torch.ones(2, 128))


def test_gradcheck_in_float64():
    x = rand(1, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: last_pool(t, 2), (x,), check_forward_ad=True)


def test_which_tokens_it_takes(monkeypatch):
    x = rand(1, 4, 6)
    assert pooling_cpu.takes(x)
    for other in (x.double(), x.to("meta"), x[:0], torch.nn.Parameter(x)):
        assert not pooling_cpu.takes(other)
    expected = last_pool(x, 2)
    assert torch.equal(last_pool(torch.nn.Parameter(x), 2), expected)
    monkeypatch.setattr(pooling_cpu, "np", None)
    assert not pooling_cpu.takes(x)
    torch.testing.assert_close(last_pool(x, 2), expected)


def test_traced_modules_hold_no_choice():
    """A traced module chooses anew for other tokens."""
    x, y = rand(1, 9, 128), rand(1, 9, 128, seed=1)
    traced = torch.jit.trace(lambda t: last_pool(t, 3), x)
    torch.testing.assert_close(traced(y), last_pool(y, 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_sorting_threads_of_its_own():
    pooling_cpu._executor(3).submit(int).result()
    child = os.fork()
    if child == 0:
        os._exit(pooling_cpu._executor.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pooling_cpu._executor.cache_info().currsize == 1
