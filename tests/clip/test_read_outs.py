"""Many poolings of one pass: each read-out must be what the host gives with that pool attached alone."""

import copy

import pytest
import torch
from clip_parts import tiny_clip
from host_parts import IMAGES, NATIVE, TINY_TIMM
from read_outs import attach_read_outs, dense_read_outs, own_pool
from timm.models.vision_transformer import VisionTransformer as TimmViT

from last_vit.dense import attach_pool, dense_forward
from last_vit.token_pool import TokenPool

POOLS = [("cls", None), ("mean", None), ("max", None), ("last", 3, None, "paper"), ("last", 0.5)]


@pytest.mark.parametrize("name", [name for name, host in NATIVE.items() if host.has_cls])
def test_every_read_out_is_that_of_the_pool_alone(name):
    torch.manual_seed(0)
    model = NATIVE[name].build().eval()
    pools = [TokenPool(*pool) for pool in POOLS]
    if name != "torchvision":
        assert own_pool(model).kind == NATIVE[name].own
    with torch.inference_mode():
        alone = []
        for pool in pools:
            single = attach_pool(copy.deepcopy(model), pool.kind, pool.top_k, variant=pool.variant or "release")
            alone.append(dense_forward(single, IMAGES))
        together = dense_read_outs(attach_read_outs(model, pools), IMAGES)
    assert len(alone) == len(together) == len(pools)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.global_token, other.global_token)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)  # a larger matmul
        assert torch.equal(one.patch_tokens, other.patch_tokens)
        assert one.grid_hw == other.grid_hw
    assert not torch.equal(together[0].global_token, together[1].global_token)


def test_one_pass_whatever_the_number_of_pools():
    model, calls = tiny_clip(), []
    model.visual.transformer.register_forward_hook(lambda *_: calls.append(1))
    attach_read_outs(model, [TokenPool("last", k) for k in range(1, 17)])
    assert (len(dense_read_outs(model, torch.randn(2, 3, 32, 32))), len(calls)) == (16, 1)


def test_refusals():
    with pytest.raises(ValueError, match="its own way"):
        own_pool(TimmViT(**TINY_TIMM, global_pool="avgmax"))
    with pytest.raises(ValueError, match="needs a class token"):
        attach_read_outs(NATIVE["timm-no-cls"].build(), [TokenPool("mean"), TokenPool("cls")])
