"""The read-outs behind one interface, and the patch score."""

import pytest
import torch

from last_vit import last_pool, patch_score
from last_vit.names import POOLS
from last_vit.patch_scores import peak_index, threshold_mask
from last_vit.token_pool import TokenPool

TOKENS = torch.randn(3, 2 + 9, 8, generator=torch.Generator().manual_seed(0))


def make(kind):
    return TokenPool(kind, top_k=2 if kind == "last" else None)


def test_each_kind_by_hand():
    cls, patches = TOKENS[:, 0], TOKENS[:, 2:]
    weights = torch.einsum("bd,bnd->bn", cls, patches).div(8**0.5).softmax(1)
    expected = {
        "cls": cls,
        "mean": patches.mean(1),
        "max": patches.max(1).values,
        "attention": torch.einsum("bn,bnd->bd", weights, patches),
        "last": last_pool(patches, 2),
    }
    assert set(expected) == set(POOLS)
    for kind, value in expected.items():
        torch.testing.assert_close(make(kind)(TOKENS, 2), value, msg=kind)


@pytest.mark.parametrize("kind", POOLS)
def test_no_state_and_dtype_kept(kind):
    pool = make(kind)
    assert not pool.state_dict()
    assert pool(TOKENS.bfloat16(), 2).dtype == torch.bfloat16


def test_no_cls_token_bad_kind_and_missing_top_k():
    with pytest.raises(ValueError, match="use mean, max or last"):
        make("attention")(TOKENS, 0)
    with pytest.raises(ValueError, match="cls, mean, max, attention, last"):
        TokenPool("gem")
    with pytest.raises(ValueError, match="needs top_k"):
        TokenPool("last")


def test_patch_score_is_the_cosine():
    patches, query = TOKENS[:, 2:], TOKENS[:, 0]
    expected = torch.cosine_similarity(patches, query[:, None], dim=2)
    score = patch_score(patches, query)
    torch.testing.assert_close(score, expected)
    assert torch.equal(peak_index(score), expected.argmax(1))
    assert patch_score(patches.half(), query.half()).dtype == torch.float32
    torch.testing.assert_close(patch_score(patches, patches[:, 4])[:, 4], torch.ones(3))


@pytest.mark.parametrize(("size", "query_size"), [(1e-42, 1e19), (1e-20, 1e-20), (1e38, 1e19)])
def test_patch_score_of_tokens_of_any_size(size, query_size):
    patches, query = TOKENS[:, 2:].clamp(-3, 3), TOKENS[:, 0].clamp(-3, 3)
    expected = patch_score(patches, query)
    patches, query = patches * size, query * query_size
    patches[0, 0] = 0.0
    score = patch_score(patches, query)
    assert score[0, 0] == 0
    expected[0, 0] = 0.0
    torch.testing.assert_close(score, expected, atol=1e-2 if size < 1e-38 else 1e-6, rtol=0)


@pytest.mark.parametrize("query", [torch.zeros(3, 7), torch.zeros(3, 1, 8), None])
def test_patch_score_shape_errors(query):
    with pytest.raises(ValueError, match=r"expected patch_tokens \[B, N, D\] .*got torch.float32 \(3, 9, 8\) and"):
        patch_score(TOKENS[:, 2:], query)


def test_threshold_mask():
    score = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert threshold_mask(score, 0.0).tolist() == [[False, False, False, True], [False, False, True, True]]
    assert threshold_mask(score, 1.0).tolist() == [[False, False, False, True], [False, False, False, True]]
