"""The method: golden vectors, properties, dtypes, gradients, transforms, memory of the score path, and every error.

What is marked `both_ways` runs by the formulas of pooling.py alone and with kernels/cpu.py, which is used where it can.
"""

import numpy as np
import pytest
import torch
from pooling_parts import GOLDEN, rand, reference_low_pass
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from last_vit import LaStPool, last_pool, last_select, low_pass, patch_score, pooling, stability, vote_count
from last_vit.names import VARIANTS
from last_vit.pooling import resolve_top_k

POOLED_KEYS = [key for key in GOLDEN if key.endswith("_pooled")]


@pytest.fixture(params=["formulas", "kernels"])
def way(request, monkeypatch):
    if request.param == "formulas":
        monkeypatch.setitem(pooling.KERNELS, "cpu", None)
    return request.param


both_ways = pytest.mark.usefixtures("way")


@both_ways
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


@both_ways
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_low_pass_against_float64(variant):
    for num_channels in (1, 2, 3, 8, 45, 768):
        for sigma in (None, 1.5):
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


@both_ways
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e30, 1e-40])
def test_stability_is_finite_for_degenerate_input(variant, value):
    x = torch.full((1, 4, 9), value)
    x[0, 0] = 0.0
    score = stability(x, variant=variant)
    assert score.isfinite().all()
    assert not score[0, 0].any()
    assert last_pool(x, 1, variant=variant).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_patches_is_the_mean(variant):
    x = rand(3, 10, 12)
    torch.testing.assert_close(last_pool(x, 10, variant=variant), x.mean(1))
    torch.testing.assert_close(last_pool(x, 1.0, variant=variant), x.mean(1))


@both_ways
@pytest.mark.parametrize("top_k", [1, 3, 9, 0.5])
def test_selection_is_the_top_k_of_stability_and_votes_sum_to_k_times_d(top_k):
    x, k = rand(2, 9, 20), resolve_top_k(top_k, 9)
    topk_idx = last_select(x, top_k)
    assert topk_idx.dtype == torch.long
    assert torch.equal(topk_idx.sort(dim=1).values, stability(x).topk(k, dim=1).indices.sort(dim=1).values)
    assert vote_count(topk_idx, 9).sum(1).tolist() == [k * 20, k * 20]


@both_ways
def test_ties_choose_a_patch_once():
    """Equal patches (as a padded image has) tie exactly: some one of them is chosen, never a sum of indices."""
    x = rand(2, 3, 20).repeat_interleave(4, dim=1)
    for top_k in (1, 5):
        topk_idx = last_select(x, top_k)
        assert vote_count(topk_idx, 12).sum(1).tolist() == [top_k * 20] * 2
        chosen = stability(x).gather(1, topk_idx).min(dim=1).values
        assert torch.equal(chosen, stability(x).topk(top_k, dim=1).values.min(dim=1).values)
    torch.testing.assert_close(last_pool(torch.zeros(1, 5, 4), 1), torch.zeros(1, 4))


@both_ways
def test_permuting_patches_permutes_votes_and_keeps_the_token():
    x, order = rand(2, 11, 14), torch.randperm(11, generator=torch.Generator().manual_seed(1))
    votes = vote_count(last_select(x, 3), 11)
    permuted = vote_count(last_select(x[:, order], 3), 11)
    assert torch.equal(permuted, votes[:, order])
    torch.testing.assert_close(last_pool(x[:, order], 3), last_pool(x, 3))


@both_ways
@pytest.mark.parametrize("top_k", [1, 7])
def test_batch_of_one_equals_slice_of_eight(top_k):
    x = rand(8, 196, 384)  # larger than one block of the blockwise selection
    assert torch.equal(last_pool(x[3:4], top_k), last_pool(x, top_k)[3:4])


@both_ways
def test_single_patch_and_empty_batch():
    x = rand(2, 1, 5)
    assert torch.equal(last_pool(x, 1), x[:, 0])
    assert last_select(x[:0], 1).shape == (0, 1, 5)
    assert last_pool(rand(0, 4, 5), 2).shape == (0, 5)
    assert low_pass(rand(0, 4, 5)).shape == (0, 4, 5)
    assert vote_count(last_select(rand(0, 4, 5), 2), 4).shape == (0, 4)


@both_ways
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = rand(2, 9, 21, dtype=dtype)
    pooled = last_pool(x, 2)
    assert pooled.dtype == dtype
    assert stability(x).dtype == low_pass(x).dtype == torch.float32
    expected = x.gather(1, last_select(x.float(), 2)).mean(1)
    torch.testing.assert_close(pooled, expected)


@both_ways
def test_autocast_and_layout_change_nothing():
    x = rand(2, 32, 9).transpose(1, 2)
    expected = last_pool(x.contiguous(), 2)
    assert torch.equal(last_pool(x, 2), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(last_pool(x, 2), expected)


@both_ways
@pytest.mark.parametrize("top_k", [1, 3])
def test_gradient_reaches_chosen_values_only(top_k):
    x = rand(2, 8, 10).requires_grad_()
    topk_idx = last_select(x, top_k)
    last_pool(x, top_k).sum().backward()
    expected = torch.zeros_like(x).scatter_(1, topk_idx, 1.0 / top_k)
    torch.testing.assert_close(x.grad, expected)


def test_score_path_is_outside_autograd(way):
    x = rand(2, 8, 10).requires_grad_()
    assert not last_select(x, 2).requires_grad
    assert not stability(x).requires_grad
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        last_pool(x, 2)
    # the indices and the input itself (no copy of it), or one byte per value; nothing that the score path made
    if way == "formulas":
        assert [t.dtype for t in saved] == [torch.long, x.dtype]
        assert saved[1].data_ptr() == x.data_ptr()
    else:
        assert [(t.dtype, t.shape) for t in saved] == [(torch.bool, (2, 8, 10))]


@both_ways
def test_selecting_needs_little_memory():
    """At most 2.6 times the input beside the indices twice while selecting, and nothing but the indices after it."""
    x = rand(16, 196, 192)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        topk_idx = last_select(x, 98)
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now)
    size, size_of_indices = (t.numel() * t.element_size() for t in (x, topk_idx))
    assert size_of_indices < peak <= 2.6 * size + 2 * size_of_indices
    assert now == pytest.approx(size_of_indices, rel=0.01)


def test_torch_compile_full_graph_for_one_width_and_then_another():
    pool = LaStPool(3)
    assert not pool.state_dict()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for num_channels in (64, 20):
        x = rand(2, 9, num_channels).requires_grad_()
        torch.testing.assert_close(compiled(x), pool(x))
        (ours,), (expected,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, pool))
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "at least 1"),
        ({"top_k": 10}, r"\[1, 9\]"),
        ({"top_k": 1.5}, r"\(0, 1\]"),
        ({"top_k": True}, "int"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": "wide"}, "sigma"),
        ({"top_k": 9, "variant": "arxiv"}, "release, paper"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        last_pool(rand(2, 9, 4), **{"top_k": 1, **options})
    with torch.autograd.set_detect_anomaly(True), pytest.raises(ValueError, match="NaN"):
        last_pool(torch.full((2, 9, 4), torch.nan), 1)


@pytest.mark.parametrize(
    ("tokens", "got"),
    [
        (torch.zeros(9, 4), r"float32 \(9, 4\)"),
        (torch.zeros(2, 9, 4, dtype=torch.long), "int64"),
        (torch.zeros(2, 0, 4), r"\(2, 0, 4\)"),
        (np.zeros((2, 9, 4), np.float32), "a ndarray"),
    ],
)
def test_bad_tokens(tokens, got):
    for function in (low_pass, stability, lambda x: last_select(x, 1), LaStPool(1)):
        with pytest.raises(ValueError, match=r"floating point \[B, N, D\].*got .*" + got):
            function(tokens)


@pytest.mark.parametrize(
    ("topk_idx", "num_patches", "message"),
    [
        (torch.zeros(2, 3, 4), 9, "long .*float32"),
        (torch.zeros(2, 3, dtype=torch.long), 9, r"\[B, K, D\].*\(2, 3\)"),
        (torch.full((2, 3, 4), 9), 9, "num_patches is 9"),
        (torch.full((2, 3, 4), -1), 9, "num_patches is 9"),
        (torch.zeros(2, 3, 4, dtype=torch.long), -9, "num_patches is -9"),
        (torch.zeros(2, 3, 4, dtype=torch.long), 2.5, "num_patches is 2.5"),
    ],
)
def test_bad_votes(topk_idx, num_patches, message):
    with pytest.raises(ValueError, match=message):
        vote_count(topk_idx, num_patches)


@both_ways
@pytest.mark.parametrize("top_k", [1, 5])
def test_in_blocks_of_images_as_all_at_once(top_k, monkeypatch):
    x = rand(7, 16, 8, dtype=torch.float64)
    pooled, topk_idx = last_pool(x, top_k), last_select(x, top_k)
    monkeypatch.setattr(pooling, "_BLOCK_NUMEL", 2 * 16 * 8)
    monkeypatch.setattr("last_vit.kernels.cpu._BLOCK_NUMEL", 2 * 16 * 8)
    assert torch.equal(last_select(x, top_k), topk_idx)
    assert torch.equal(last_pool(x, top_k), pooled)


@both_ways
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_vmap_and_gradients_per_image(variant, top_k):
    x = rand(4, 9, 20).requires_grad_()
    token = lambda image: last_pool(image[None], top_k, variant=variant)[0]  # noqa: E731
    pooled = last_pool(x, top_k, variant=variant)
    torch.testing.assert_close(torch.vmap(token)(x), pooled)
    (expected,) = torch.autograd.grad(pooled.square().sum(), x)
    per_image = torch.vmap(torch.func.grad(lambda image: token(image).square().sum()))(x.detach())
    torch.testing.assert_close(per_image, expected)
    _, tangent = torch.func.jvp(lambda t: last_pool(t, top_k, variant=variant), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones(4, 20))
    votes = torch.vmap(lambda image: vote_count(last_select(image[None], top_k, variant=variant), 9)[0])(x.detach())
    assert torch.equal(votes, vote_count(last_select(x, top_k, variant=variant), 9))


@both_ways
@pytest.mark.parametrize("top_k", [1, 3])
def test_gradient_of_the_gradient(top_k):
    """The token is linear in x while the choice stands: d^2/dx^2 of its squares is 2/K^2 for kept pairs."""
    x = rand(1, 6, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(last_pool(x, top_k).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    kept = torch.zeros(x.shape).scatter_(1, last_select(x, top_k), 1.0)
    torch.testing.assert_close(second, kept * 2 / top_k)


@both_ways
@pytest.mark.parametrize("top_k", [1, 3])
def test_torch_defaults_change_nothing(top_k):
    """Default float type and default device are for what a user makes, not for what is made on the way."""
    x = rand(2, 9, 20)

    def results():
        token, topk_idx = last_pool(x, top_k), last_select(x, top_k)
        return token, topk_idx, vote_count(topk_idx, 9), low_pass(x), stability(x), patch_score(x, token)

    expected = results()
    try:
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            torch.set_default_dtype(dtype)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(results(), expected, strict=True))
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results(), expected, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_fake_and_meta_tokens_leave_nothing_behind():
    expected = low_pass(rand(2, 9, 26))
    with FakeTensorMode():
        assert last_pool(torch.empty(2, 9, 26), 2).shape == (2, 26)
        assert low_pass(torch.empty(2, 9, 26)).shape == (2, 9, 26)
    assert torch.equal(low_pass(rand(2, 9, 26)), expected)
    meta = torch.empty(2, 9, 26, device="meta")
    assert (last_pool(meta, 2).shape, last_select(meta, 2).shape) == ((2, 26), (2, 2, 26))
    assert (low_pass(meta).shape, stability(meta).shape) == ((2, 9, 26), (2, 9, 26))


def test_traced_graphs_choose_anew():
    x, y = rand(2, 9, 64), rand(2, 9, 64, seed=1)
    traced = [make_fx(lambda t: last_pool(t, 3), tracing_mode=mode)(x) for mode in ("real", "fake", "symbolic")]
    for graph in (*traced, torch.jit.trace(lambda t: last_pool(t, 3), x)):
        torch.testing.assert_close(graph(y), last_pool(y, 3))
