"""Many poolings of one pass: each read-out must be what the host gives with that pool attached alone."""

import copy

import pytest
import timm
import torch
from clip_parts import tiny_clip
from open_clip.model import CustomTextCLIP
from read_outs import attach_read_outs, dense_read_outs, own_pool
from torchvision.models import VisionTransformer

from last_vit.dense import attach_pool, dense_forward
from last_vit.token_pool import TokenPool

POOLS = [
    ("cls", None, "release"),
    ("mean", None, "release"),
    ("max", None, "release"),
    ("last", 3, "paper"),
    ("last", 0.5, "release"),
]
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


def eva_clip():
    trunk = {"image_size": 32, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None}
    return CustomTextCLIP(16, trunk, TEXT).eval()


def timm_vit(**options):
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=5, **options)


HOSTS = {
    "open_clip": tiny_clip,
    "open_clip, norm after pooling": lambda: tiny_clip(final_ln_after_pool=True, pool_type="avg"),
    "EVA": eva_clip,
    "torchvision": lambda: VisionTransformer(32, 8, 1, 2, hidden_dim=16, mlp_dim=32, num_classes=5),
    "timm": timm_vit,
    "timm, norm after pooling": lambda: timm_vit(global_pool="avg"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_every_read_out_is_that_of_the_pool_alone(name):
    torch.manual_seed(0)
    model = HOSTS[name]().eval()
    side = {"EVA": 28, "timm": 64}.get(name.split(",")[0], 32)
    if name == "EVA":
        model.visual.trunk.set_input_size((28, 28))
    images = torch.randn(3, 3, side, side)
    with torch.inference_mode():
        own = dense_forward(model, images)
        alone = [dense_forward(attach_pool(copy.deepcopy(model), *pool[:2], variant=pool[2]), images) for pool in POOLS]
        if name != "torchvision":
            as_own = dense_forward(attach_pool(copy.deepcopy(model), own_pool(model).kind), images)
            torch.testing.assert_close(as_own.global_token, own.global_token, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(as_own.logits, own.logits, rtol=1e-5, atol=1e-6)
        pools = [TokenPool(*pool[:2], variant=pool[2]) for pool in POOLS]
        together = dense_read_outs(attach_read_outs(model, pools), images)
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
        own_pool(timm_vit(global_pool="avgmax"))
    with pytest.raises(ValueError, match="needs a class token"):
        attach_read_outs(timm_vit(class_token=False, global_pool="avg"), [TokenPool("mean"), TokenPool("cls")])
