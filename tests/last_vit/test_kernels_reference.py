"""The first call of each sort of kernel: what it is held against, and what becomes of one that differs."""

import pytest
import torch
from test_pooling import rand

from last_vit import last_pool, last_select
from last_vit.kernels import reference


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(reference, "_agreed", set())


def kept_of(x, k):
    """What a kernel writes of the formulas' choice."""
    topk_idx = last_select(x, k)
    if k == 1:
        return topk_idx[:, 0].int()
    num_words = -(-x.shape[1] // 32)
    is_kept = torch.zeros(x.shape[0], 32 * num_words, x.shape[2], dtype=torch.int64).scatter_(1, topk_idx, 1)
    words = (is_kept.unflatten(1, (num_words, 32)) << torch.arange(32)[:, None]).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@pytest.mark.parametrize(("num_patches", "k"), [(9, 1), (9, 3), (70, 33)])
def test_a_token_that_disagrees_with_the_formulas_is_an_error(num_patches, k, nothing_known):
    x = rand(2, num_patches, 64)
    right, kept = last_pool(x, k), kept_of(x, k)
    is_kept = reference.unpack_kept(kept, num_patches)
    assert torch.equal(is_kept, torch.zeros_like(is_kept).scatter_(1, last_select(x, k), True))

    def check(tokens, pooled, kept, window=128):
        reference.check_pool(tokens, k, 8.0, "release", pooled, kept, window, False)

    broken = torch.where(torch.arange(64) < 2, right + 1, right)
    with pytest.raises(RuntimeError, match=r"96\.9% of the channels only .* LAST_VIT_TRITON=0"):
        check(x, broken, kept)
    with pytest.raises(RuntimeError, match="tokens of LaSt's Triton kernels"):
        check(x, right, torch.zeros_like(kept))  # the choice that the gradient will follow
    check(x * float("nan"), broken, kept)
    assert not reference._agreed
    check(x, right, kept)
    check(x, broken, kept)  # once is enough
    with pytest.raises(RuntimeError):
        check(x, broken, kept, window=256)  # for each sort of kernel


def test_gradients_and_lists_that_disagree_are_errors(nothing_known):
    x, grad = rand(2, 40, 64), rand(2, 64, seed=1)
    kept, topk_idx = kept_of(x, 3), last_select(x, 3)
    spread = torch.zeros_like(x).scatter_(1, topk_idx, (grad / 3)[:, None].expand(-1, 3, -1))
    with pytest.raises(RuntimeError, match="gradients"):
        reference.check_spread(grad, kept, 3, spread.roll(1, dims=1))
    with pytest.raises(RuntimeError, match="lists"):
        reference.check_list(kept, topk_idx.clamp(max=20), 40)
    reference.check_spread(grad, kept, 3, spread)
    reference.check_list(kept, topk_idx, 40)
    assert len(reference._agreed) == 2
