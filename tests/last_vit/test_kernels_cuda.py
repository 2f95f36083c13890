"""LaSt pooling's Triton kernels against the formulas in float64.

Without a GPU the kernels run in Triton's interpreter, which has to be chosen before Triton is imported: one test runs
this file again in a process of its own with TRITON_INTERPRET=1, and the tests marked `interpreted` run there. What only
a GPU can show is marked `on_gpu`.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pooling_parts import GOLDEN, rand
from torch._subclasses.fake_tensor import FakeTensorMode

import last_vit
from last_vit import last_pool, last_select, pooling, stability
from last_vit.kernels import fused_pool
from last_vit.names import VARIANTS
from last_vit.pooling import TINY, half_gain

pytest.importorskip("triton", reason="torch brings no Triton on this platform")
from last_vit.kernels import cuda

REPO = Path(__file__).resolve().parents[2]
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the process of test_under_the_interpreter")
elsewhere = pytest.mark.skipif(IS_INTERPRETED, reason="has nothing to do with the kernels")
_on_gpu = pytest.mark.skipif(IS_INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def fused():
    last_vit.use_fused_pool(True)
    yield
    last_vit.use_fused_pool(False)


def on_gpu(test):
    return _on_gpu(pytest.mark.usefixtures("fused")(test))


def pool(x, k, variant="release"):
    return cuda.pool(x, k, x.shape[2] ** 0.5, variant)


def select(x, k, variant="release"):
    return cuda.select(x, k, x.shape[2] ** 0.5, variant)


def score_bounds(x, variant):
    """Smallest and largest score in float64 when x_hat is off by up to 1e-6 of the patch's largest value."""
    x = x.double().cpu()
    gain = half_gain(x.shape[2], x.shape[2] ** 0.5, variant, x.device)
    x_hat = torch.fft.irfft(torch.fft.rfft(x) * gain, n=x.shape[2])
    slack = 1e-6 * x.abs().amax(dim=2, keepdim=True)
    near, far = ((x_hat - x).abs() - slack).clamp_min(0), (x_hat - x).abs() + slack
    if variant == "paper":
        scores = [(x_hat + side) / (distance + 1e-6) for side in (-slack, slack) for distance in (near, far)]
    else:
        scores = [x / distance.clamp_min(TINY) for distance in (near, far)]
    scores = torch.stack(scores)
    return scores.amin(0), scores.amax(0)


def check_choice(x, topk_idx, k, variant):
    """Every kept patch beats every other one, up to rounding; and nearly always it is the float64 formula's choice."""
    topk_idx = topk_idx.cpu()
    assert (topk_idx.shape, topk_idx.dtype) == ((x.shape[0], k, x.shape[2]), torch.long)
    is_kept = torch.zeros(x.shape, dtype=torch.bool).scatter_(1, topk_idx, True)
    assert (is_kept.sum(1) == k).all()
    low, high = score_bounds(x, variant)
    worst_kept = high.masked_fill(~is_kept, float("inf")).amin(1)
    best_left = low.masked_fill(is_kept, -float("inf")).amax(1)
    assert (worst_kept >= best_left - 1e-6 * best_left.abs()).all()
    exact = ((low + high) / 2).topk(k, dim=1).indices
    same = torch.zeros_like(is_kept).scatter_(1, exact, True) == is_kept
    assert same.double().mean() > 0.995


@elsewhere
def test_under_the_interpreter():
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@interpreted
@pytest.mark.parametrize(
    ("dtype", "variant", "shape", "k"),
    [
        (torch.bfloat16, "release", (2, 20, 45), 1),
        (torch.float16, "paper", (1, 67, 70), 1),
        (torch.float32, "release", (1, 40, 33), 7),
        (torch.bfloat16, "release", (1, 130, 40), 65),
    ],
)
def test_choice_and_mean(dtype, variant, shape, k):
    x = rand(*shape, dtype=dtype)
    topk_idx = select(x, k, variant=variant)
    check_choice(x, topk_idx, k, variant)
    pooled = pool(x, k, variant=variant)
    assert pooled.dtype == dtype
    rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-6}[dtype]  # it rounds towards zero
    torch.testing.assert_close(pooled.double(), x.double().gather(1, topk_idx).mean(1), rtol=rounding, atol=1e-6)


@interpreted
def test_golden():
    pooled = pool(torch.from_numpy(GOLDEN["c1_x"]), 7, variant="paper")
    torch.testing.assert_close(pooled, torch.from_numpy(GOLDEN["c1_paper_k7_pooled"]), atol=1e-5, rtol=0)


def tied(*shape):
    """Four equal patches of each kind, and the patches by falling score."""
    x = rand(*shape)
    return x.repeat(1, 4, 1), stability(x).repeat(1, 4, 1).sort(dim=1, descending=True, stable=True).indices


@interpreted
@pytest.mark.parametrize(("num_rows", "k"), [(5, 1), (5, 7), (66, 1)])
def test_ties_keep_the_first_patches(num_rows, k):
    """In one block, and in two parts of the patches."""
    x, ranked = tied(1, num_rows, 8)
    assert torch.equal(select(x, k), ranked[:, :k].sort(dim=1).values)


@interpreted
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e30])
def test_degenerate_tokens(value):
    x = torch.full((1, 9, 20), value)
    x[0, 0] = 0.0
    torch.testing.assert_close(pool(x, 2, variant="paper"), last_pool(x, 2, variant="paper"))


@interpreted
@pytest.mark.parametrize(("value", "k"), [(float("nan"), 1), (float("inf"), 3)])
def test_what_is_not_finite_comes_through_and_stays_near(value, k):
    x = rand(1, 20, 192)
    x[0, 5, 30] = value
    clean = x.clone()
    clean[0, 5, 30] = 0.0
    pooled, expected = pool(x, k), pool(clean, k)
    assert not pooled[0, 30].isfinite()
    torch.testing.assert_close(pooled[0, 64:128], expected[0, 64:128])


@interpreted
def test_tokens_are_read_where_they_lie():
    x = rand(2, 21, 24, dtype=torch.bfloat16)
    for view, k in ((x[:, 1:], 3), (x.transpose(1, 2), 1)):
        assert torch.equal(pool(view, k), pool(view.contiguous(), k))


@interpreted
def test_no_images_and_all_patches():
    x = rand(0, 20, 24)
    assert (pool(x, 1).shape, pool(x, 3).shape, select(x, 3).shape) == ((0, 24), (0, 24), (0, 3, 24))
    x = rand(1, 20, 24)
    torch.testing.assert_close(pool(x, 20), x.mean(1))


@interpreted
@pytest.mark.parametrize(("shape", "k", "dtype"), [((2, 20, 150), 1, torch.bfloat16), ((2, 40, 20), 3, torch.float32)])
def test_gradient_reaches_the_kept_values_only(shape, k, dtype):
    x = rand(*shape, dtype=dtype).requires_grad_()
    grad = rand(shape[0], shape[2], dtype=dtype, seed=1)
    pool(x, k).backward(grad)
    spread = (grad / k)[:, None].expand(-1, k, -1)
    assert torch.equal(x.grad, torch.zeros_like(x).scatter_(1, select(x, k), spread))


@interpreted
def test_the_input_is_not_kept_for_the_backward_pass():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pool(rand(2, 40, 20).requires_grad_(), 3)
    assert [(t.shape, t.dtype) for t in saved] == [((2, 2, 20), torch.int32)]


@interpreted
def test_operators_keep_their_promises():
    x = rand(1, 9, 24)
    torch.library.opcheck(cuda.pool_on_gpu, (x.clone().requires_grad_(), 3, 5.0, "release"))
    _, kept = cuda.pool_on_gpu(x, 1, 5.0, "release")
    torch.library.opcheck(cuda.spread_on_gpu, (rand(1, 24), kept, 1, 9))


def fake_tokens(shape=(2, 196, 768), dtype=torch.bfloat16):
    return SimpleNamespace(shape=shape, dtype=dtype, device=SimpleNamespace(type="cuda", index=0))


@elsewhere
@pytest.mark.parametrize(
    ("tokens", "k", "sigma", "taken"),
    [
        (fake_tokens((1, 16384, 4096)), 1, 64.0, True),
        (fake_tokens((1, 256, 4096)), 7, 64.0, True),
        (fake_tokens((0, 1, 1)), 1, 1.0, True),
        (fake_tokens(dtype=torch.float64), 1, 27.7, False),
        (fake_tokens((1, 196, 4097)), 1, 64.0, False),
        (fake_tokens((1, 16385, 8)), 1, 3.0, False),
        (fake_tokens((1, 257, 768)), 7, 27.7, False),
        (fake_tokens((65536, 1, 8)), 1, 3.0, False),
        (fake_tokens(), 1, 6.0, False),
    ],
)
def test_which_tokens_it_takes(tokens, k, sigma, taken, monkeypatch):
    monkeypatch.setattr(cuda, "_is_plain", lambda tokens: True)
    assert cuda.takes(tokens, k, sigma, "release") == taken


@elsewhere
def test_off_until_turned_on(monkeypatch):
    assert "cuda" not in pooling.KERNELS
    monkeypatch.setitem(pooling.KERNELS, "cuda", None)
    gpu = SimpleNamespace(major=9, shared_memory_per_block_optin=232448, name="H100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    for enabled, found in ((True, cuda), (False, None)):
        last_vit.use_fused_pool(enabled)
        assert pooling.KERNELS["cuda"] is found
    gpu.major, gpu.name = 8, "A100"
    with pytest.raises(ValueError, match=r"capability 9\.0.*found A100"):
        last_vit.use_fused_pool(True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds none"):
        last_vit.use_fused_pool(True)
    monkeypatch.setattr(fused_pool, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Triton"):
        last_vit.use_fused_pool(True)


@elsewhere
def test_turned_on_last_pool_comes_here(monkeypatch):
    """On tensors without memory, so no kernel runs: what `last_pool` and `last_select` call, also in a traced graph."""
    graphs = []
    monkeypatch.setitem(pooling.KERNELS, "cuda", cuda)
    monkeypatch.setattr(cuda, "_is_plain", lambda tokens: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 196, 768, device="cuda", dtype=torch.bfloat16)
        assert (last_pool(x, 7).shape, last_pool(x, 7).dtype) == ((2, 768), torch.bfloat16)
        assert (last_select(x, 7).shape, last_select(x, 1).shape) == ((2, 7, 768), (2, 1, 768))
        traced = torch.compile(
            lambda t: last_pool(t, 7), fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph
        )
        traced(torch.empty(2, 196, 96, device="cuda"))
    calls = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert any("pool_on_gpu" in call for call in calls)
    assert not any("fft" in call for call in calls)


@interpreted
def test_gradient_of_the_gradient():
    """The token is linear in x while the choice stands: d^2/dx^2 of its squares is 2/9 for kept pairs."""
    x = rand(1, 40, 20).requires_grad_()
    (gradient,) = torch.autograd.grad(pool(x, 3).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    kept = torch.zeros(x.shape).scatter_(1, select(x, 3), 1.0)
    torch.testing.assert_close(second, kept * 2 / 3)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 196, 768), (2, 49, 45), (2, 257, 1000), (1, 130, 4096), (1, 16384, 384)])
def test_gpu_choice_and_mean(dtype, variant, shape):
    x = rand(*shape, dtype=dtype).cuda()
    for k in (1, 7, shape[1] - 1):
        topk_idx = last_select(x, k, variant=variant)
        check_choice(x, topk_idx, k, variant)
        tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}[dtype]
        pooled = last_pool(x, k, variant=variant)
        torch.testing.assert_close(pooled.double(), x.double().gather(1, topk_idx).mean(1), rtol=tolerance, atol=1e-6)
        assert torch.equal(pooled, last_pool(x, k, variant=variant))


@on_gpu
@pytest.mark.parametrize(("num_rows", "k"), [(5, 7), (60, 181), (150, 1)])
def test_gpu_ties_keep_the_first_patches(num_rows, k):
    x, ranked = tied(2, num_rows, 64)
    assert torch.equal(last_select(x.cuda(), k).cpu(), ranked[:, :k].sort(dim=1).values)


@on_gpu
@pytest.mark.parametrize(("num_patches", "k"), [(100, 1), (100, 7), (1024, 1)])
def test_gpu_compiled_into_cuda_graphs_of_torch(num_patches, k):
    x = rand(8, num_patches, 704, dtype=torch.bfloat16).cuda()  # a width that nothing has pooled before
    compiled = torch.compile(lambda t: last_pool(t, k), fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        x.copy_(rand(*x.shape, dtype=x.dtype, seed=seed))
        assert torch.equal(compiled(x).clone(), last_pool(x, k))


@on_gpu
@pytest.mark.parametrize(("num_patches", "k"), [(196, 1), (196, 98), (1024, 1)])
def test_gpu_memory_is_far_below_the_input(num_patches, k):
    x = rand(16, num_patches, 768, dtype=torch.bfloat16).cuda()
    last_pool(x, k)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    last_pool(x, k)
    assert torch.cuda.max_memory_allocated() - before < 0.2 * x.numel() * x.element_size()
