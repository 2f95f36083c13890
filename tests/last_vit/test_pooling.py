"""The method: golden vectors, properties, dtypes, gradients, memory of the score path, and every error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from last_vit import LaStPool, last_pool, last_select, low_pass, pooling_formulas, stability, vote_count
from last_vit.pooling import VARIANTS, resolve_top_k

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "last_pool.npz")
POOLED_KEYS = [key for key in GOLDEN if key.endswith("_pooled")]


def rand(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference_low_pass(x, variant, sigma=None):
    """DESIGN section 2 word for word in float64: complex FFT, explicit frequencies, full-length gain."""
    d = x.shape[-1]
    sigma = sigma or d**0.5
    freq = torch.fft.fftfreq(d, 1 / d, dtype=torch.float64)
    if variant == "release" and d % 2 == 0:
        freq = freq + 1
    gain = torch.exp(-0.5 * (freq / sigma) ** 2)
    return torch.fft.ifft(gain * torch.fft.fft(x.double(), dim=-1), dim=-1).real


@pytest.mark.parametrize("key", POOLED_KEYS)
def test_golden_pooled_and_votes(key):
    case, variant, k = key.split("_")[:3]
    x, top_k = torch.from_numpy(GOLDEN[f"{case}_x"]), int(k[1:])
    pooled = last_pool(x, top_k, variant=variant)
    torch.testing.assert_close(pooled, torch.from_numpy(GOLDEN[key]), atol=1e-5, rtol=0)
    topk_idx = last_select(x, top_k, variant=variant)
    votes = vote_count(topk_idx, x.shape[1])
    off = votes - torch.from_numpy(GOLDEN[key.replace("pooled", "votes")]).long()
    if off.any():  # allowed only where the K-th and (K+1)-th scores of a channel tie within 1e-6
        ranked = stability(x, variant=variant).sort(dim=1, descending=True).values
        ties = ((ranked[:, top_k - 1] - ranked[:, min(top_k, x.shape[1] - 1)]).abs() <= 1e-6).sum()
        assert off.abs().sum() <= 2 * ties


@pytest.mark.parametrize("case", ["c0", "c1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_low_pass(case, variant):
    x = torch.from_numpy(GOLDEN[f"{case}_x"])
    expected = torch.from_numpy(GOLDEN[f"{case}_{variant}_lowpass"])
    torch.testing.assert_close(low_pass(x, variant=variant), expected.float(), atol=5e-6, rtol=0)


def test_published_release_vector():
    """The eight-channel example worked out by hand from the released code (off-by-one kernel, no epsilon)."""
    i, j = torch.arange(4.0)[:, None], torch.arange(8.0)[None]
    x = (torch.sin(0.7 * (i + 1) * (j + 1)) + 0.1 * j)[None]
    expected = torch.tensor([0.594483, 0.979665, 0.964049, 0.583605, 0.059778, -0.313992, -0.319355, 0.074407])
    torch.testing.assert_close(low_pass(x)[0, 0], expected, atol=2e-6, rtol=0)
    assert last_select(x, 1)[0, 0].tolist() == [0, 0, 2, 0, 1, 2, 1, 0]
    assert vote_count(last_select(x, 2), 4)[0].tolist() == [6, 5, 4, 1]
    pooled = torch.tensor([0.814834, 0.760219, 0.640012, 0.894794, 0.553102, 0.944111, 0.839634, 0.185589])
    torch.testing.assert_close(last_pool(x, 2)[0], pooled, atol=2e-6, rtol=0)


@pytest.mark.parametrize("num_channels", [1, 2, 3, 7, 8, 24, 45, 768])
@pytest.mark.parametrize("sigma", [None, 1.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_low_pass_against_float64(num_channels, sigma, variant):
    x = rand(2, 5, num_channels)
    expected = reference_low_pass(x, variant, sigma)
    torch.testing.assert_close(low_pass(x, sigma, variant).double(), expected, atol=3e-6, rtol=0)


def test_stability_follows_both_formulas():
    x = rand(2, 6, 16)
    release = x.double() / (reference_low_pass(x, "release") - x.double()).abs()
    torch.testing.assert_close(stability(x).double(), release, rtol=2e-4, atol=1e-5)
    x_hat = reference_low_pass(x, "paper")
    paper = x_hat / ((x_hat - x.double()).abs() + 1e-6)
    torch.testing.assert_close(stability(x, variant="paper").double(), paper, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e30, 1e-40])
def test_stability_is_finite_for_degenerate_input(variant, value):
    x = torch.full((1, 4, 9), value)
    x[0, 0] = 0.0
    score = stability(x, variant=variant)
    assert score.isfinite().all()
    assert (score[0, 0] == 0).all()
    assert last_pool(x, 1, variant=variant).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_patches_is_the_mean(variant):
    x = rand(3, 10, 12)
    torch.testing.assert_close(last_pool(x, 10, variant=variant), x.mean(1))
    torch.testing.assert_close(last_pool(x, 1.0, variant=variant), x.mean(1))


@pytest.mark.parametrize("top_k", [1, 3, 9, 0.5])
def test_votes_sum_to_k_times_d_and_indices_are_distinct(top_k):
    x = rand(2, 9, 20)
    topk_idx = last_select(x, top_k)
    k = resolve_top_k(top_k, 9)
    assert topk_idx.shape == (2, k, 20)
    assert topk_idx.dtype == torch.long
    assert vote_count(topk_idx, 9).sum(1).tolist() == [k * 20, k * 20]
    assert all(len(set(topk_idx[b, :, d].tolist())) == k for b in range(2) for d in range(20))


def test_selection_is_the_top_k_of_stability():
    x = rand(2, 9, 20)
    expected = stability(x).topk(4, dim=1).indices.sort(dim=1).values
    assert torch.equal(last_select(x, 4).sort(dim=1).values, expected)


def test_ties_choose_a_patch_once():
    """Equal patches (as a padded image has) tie exactly: some one of them is chosen, never a sum of indices."""
    x = rand(2, 3, 20).repeat_interleave(4, dim=1)
    for top_k in (1, 5):
        topk_idx = last_select(x, top_k)
        assert vote_count(topk_idx, 12).sum(1).tolist() == [top_k * 20] * 2
        chosen = stability(x).gather(1, topk_idx).min(dim=1).values
        assert torch.equal(chosen, stability(x).topk(top_k, dim=1).values.min(dim=1).values)
    torch.testing.assert_close(last_pool(torch.zeros(1, 5, 4), 1), torch.zeros(1, 4))


def test_permuting_patches_permutes_votes_and_keeps_the_token():
    x, order = rand(2, 11, 14), torch.randperm(11, generator=torch.Generator().manual_seed(1))
    votes = vote_count(last_select(x, 3), 11)
    permuted = vote_count(last_select(x[:, order], 3), 11)
    assert torch.equal(permuted, votes[:, order])
    torch.testing.assert_close(last_pool(x[:, order], 3), last_pool(x, 3))


@pytest.mark.parametrize("top_k", [1, 7])
def test_batch_of_one_equals_slice_of_eight(top_k):
    x = rand(8, 196, 384)  # larger than one block of the blockwise selection
    assert torch.equal(last_pool(x[3:4], top_k), last_pool(x, top_k)[3:4])


def test_single_patch_and_empty_batch():
    x = rand(2, 1, 5)
    assert torch.equal(last_pool(x, 1), x[:, 0])
    assert last_select(x[:0], 1).shape == (0, 1, 5)
    assert last_pool(rand(0, 4, 5), 2).shape == (0, 5)
    assert low_pass(rand(0, 4, 5)).shape == (0, 4, 5)
    assert vote_count(last_select(rand(0, 4, 5), 2), 4).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = rand(2, 9, 21, dtype=dtype)
    pooled = last_pool(x, 2)
    assert pooled.dtype == dtype
    assert stability(x).dtype == low_pass(x).dtype == torch.float32
    expected = x.gather(1, last_select(x.float(), 2)).mean(1)
    torch.testing.assert_close(pooled, expected)


def test_autocast_changes_nothing():
    x = rand(2, 9, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = last_pool(x, 2)
    assert torch.equal(inside, last_pool(x, 2))


def test_non_contiguous_input():
    x = rand(2, 12, 9).transpose(1, 2)
    assert torch.equal(last_pool(x, 2), last_pool(x.contiguous(), 2))


@pytest.mark.parametrize("top_k", [1, 3])
def test_gradient_reaches_chosen_values_only(top_k):
    x = rand(2, 8, 10).requires_grad_()
    topk_idx = last_select(x, top_k)
    last_pool(x, top_k).sum().backward()
    expected = torch.zeros_like(x).scatter_(1, topk_idx, 1.0 / top_k)
    torch.testing.assert_close(x.grad, expected)


def test_score_path_is_outside_autograd():
    x = rand(2, 8, 10).requires_grad_()
    assert not last_select(x, 2).requires_grad
    assert not stability(x).requires_grad

    def saved_by_pool(x, top_k):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            last_pool(x, top_k)
        return saved

    # the indices and the input itself (no copy of it); nothing that the score path made
    for tokens, top_k in ((x, 1), (x.detach().double().requires_grad_(), 2)):
        saved = saved_by_pool(tokens, top_k)
        assert [t.dtype for t in saved] == [torch.long, tokens.dtype]
        assert saved[1].data_ptr() == tokens.data_ptr()
    # several patches per channel, on a CPU: one byte per value
    assert [(t.dtype, t.shape) for t in saved_by_pool(rand(2, 8, 10).requires_grad_(), 2)] == [(torch.int8, (2, 8, 10))]


def test_inference_mode_leaves_no_trace():
    """The cached gain is made on first use, here in inference mode; backward through low_pass needs it later."""
    with torch.inference_mode():
        last_pool(rand(1, 4, 26), 1)
    x = rand(1, 4, 26).requires_grad_()
    low_pass(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(16, 196, 192), (1, 1024, 768), (9, 196, 384), (1, 196, 768)])
def test_selecting_needs_little_memory(shape):
    """At most 2.5 times the input, or three MiB, while selecting many patches, and nothing but the indices after it."""
    x = rand(*shape)
    last_select(x, 98)  # caches the gain
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        topk_idx = last_select(x, 98)
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now)
    size = x.numel() * x.element_size()
    assert topk_idx.numel() * topk_idx.element_size() < peak <= max(2.51 * size, 3 << 20)
    assert now == pytest.approx(topk_idx.numel() * topk_idx.element_size(), rel=0.01)


def test_gradient_checkpointing_gives_the_same_gradient():
    x, y = rand(2, 8, 10).requires_grad_(), rand(2, 8, 10).requires_grad_()
    last_pool(x * 2, 3).square().sum().backward()
    checkpoint(lambda t: last_pool(t * 2, 3), y, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("top_k", [1, 3])
def test_torch_compile_full_graph(top_k):
    pool = LaStPool(top_k)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    x, y = rand(2, 8, 10).requires_grad_(), rand(2, 8, 10).requires_grad_()
    torch.testing.assert_close(compiled(x), pool(y))
    compiled(x).square().sum().backward()
    pool(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_module_has_no_state():
    pool = LaStPool(0.5, sigma=3.0, variant="paper")
    assert not pool.state_dict()
    assert not list(pool.parameters())
    assert "top_k=0.5" in repr(pool)
    assert "paper" in repr(pool)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"top_k": 0}, "at least 1"),
        ({"top_k": -3}, "at least 1"),
        ({"top_k": 10}, r"\[1, 9\]"),
        ({"top_k": 1.5}, r"\(0, 1\]"),
        ({"top_k": 0.0}, r"\(0, 1\]"),
        ({"top_k": True}, "int"),
        ({"top_k": "7"}, "int"),
        ({"top_k": 1, "sigma": 0.0}, "sigma"),
        ({"top_k": 9, "sigma": -1.0}, "sigma"),
        ({"top_k": 1, "variant": "arxiv"}, "release, paper"),
        ({"top_k": 9, "variant": "arxiv"}, "release, paper"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        last_pool(rand(2, 9, 4), **kwargs)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(9, 4), r"\[B, N, D\]"),
        (torch.zeros(2, 3, 3, 4), r"\[B, N, D\]"),
        (torch.zeros(2, 9, 4, dtype=torch.long), "floating point"),
        (torch.zeros(2, 0, 4), "at least one patch"),
    ],
)
@pytest.mark.parametrize("function", [low_pass, stability, lambda x: last_select(x, 1), lambda x: last_pool(x, 1)])
def test_bad_tokens(function, tokens, message):
    with pytest.raises(ValueError, match=message):
        function(tokens)


def test_nan_is_refused_in_debug_mode():
    x = rand(2, 9, 4)
    x[1, 2, 3] = float("nan")
    with torch.autograd.set_detect_anomaly(True), pytest.raises(ValueError, match="NaN"):
        last_pool(x, 1)


@pytest.mark.parametrize("top_k", [1, 5])
def test_the_formulas_in_blocks_of_images_are_those_of_all(top_k, monkeypatch):
    x = rand(7, 16, 8, dtype=torch.float64)
    whole = pooling_formulas.select(x, top_k, 2.0, "paper")
    monkeypatch.setattr(pooling_formulas, "_BLOCK_NUMEL", 2 * 16 * 8)
    assert torch.equal(pooling_formulas.select(x, top_k, 2.0, "paper"), whole)


def test_fake_and_meta_tokens_leave_nothing_behind():
    with FakeTensorMode():
        assert last_pool(torch.empty(2, 9, 26), 2).shape == (2, 26)
        assert low_pass(torch.empty(2, 9, 26)).shape == (2, 9, 26)
    expected = low_pass(rand(2, 9, 26))
    with FakeTensorMode():
        assert low_pass(torch.empty(2, 9, 26)).shape == (2, 9, 26)
    assert torch.equal(low_pass(rand(2, 9, 26)), expected)
    meta = torch.empty(2, 9, 26, device="meta")
    assert (last_pool(meta, 2).shape, last_select(meta, 2).shape) == ((2, 26), (2, 2, 26))
    assert (low_pass(meta).shape, stability(meta).shape) == ((2, 9, 26), (2, 9, 26))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    x, y = rand(2, 9, 64), rand(2, 9, 64, seed=1)
    traced = make_fx(lambda t: last_pool(t, 3), tracing_mode=mode)(x)
    torch.testing.assert_close(traced(y), last_pool(y, 3))


def test_compiled_for_one_width_and_then_another():
    compiled = torch.compile(lambda t: last_pool(t, 3), fullgraph=True, backend="aot_eager")
    for num_channels in (64, 96, 20):
        x = rand(2, 9, num_channels)
        torch.testing.assert_close(compiled(x), last_pool(x, 3))
