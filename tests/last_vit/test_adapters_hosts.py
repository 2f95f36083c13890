"""Adapters on ViT hosts: what is particular to one library, real configurations, and the errors."""

import doctest

import open_clip
import pytest
import timm
import torch
import torchvision
from host_parts import IMAGES, TINY_CLIP, TINY_TIMM, tiny_clip, tiny_torchvision
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT

import last_vit.dense
from last_vit.adapters import find_adapter
from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

pytestmark = pytest.mark.usefixtures("inference")


@pytest.mark.parametrize("cls", [TimmViT, Eva])
def test_non_square_images_keep_their_grid(cls):
    model = cls(**TINY_TIMM, dynamic_img_size=True, global_pool="token").eval()
    images = torch.randn(2, 3, 24, 56)
    out = dense_forward(model, images)
    assert out.grid_hw == (3, 7)
    assert out.patch_tokens.shape == (2, 21, 16)
    # A change inside row 2, column 5 moves the patch embedding of that cell alone.
    changed = images.clone()
    changed[:, :, 16:24, 40:48] += 1
    model.blocks = type(model.blocks)()
    moved = (dense_forward(model, changed).patch_tokens - dense_forward(model, images).patch_tokens).abs().sum((0, 2))
    assert moved.nonzero().flatten().tolist() == [2 * 7 + 5]


def test_dropped_patches_are_an_error():
    model = TimmViT(**TINY_TIMM, patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match=r"8 patch tokens for a 4 x 4 grid.*model.eval\(\)"):
        dense_forward(model, IMAGES)


def test_timm_tower_is_read_through_its_trunk():
    tower = TimmModel("test_vit", embed_dim=6, image_size=160, pool="token", proj="linear").eval()
    images = torch.randn(1, 3, 160, 160)
    own = tower(images)
    out = dense_forward(attach_last(tower, top_k=3), images)
    assert torch.equal(out.logits, tower(images))
    torch.testing.assert_close(tower.head(last_pool(out.patch_tokens, top_k=3)), out.logits)
    assert pooling_of(tower)["top_k"] == 3
    assert torch.equal(attach_pool(tower, "cls")(images), own)


def test_images_of_another_size_are_refused():
    config = open_clip.get_model_config("EVA02-B-16")
    with torch.device("meta"):
        tower = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    with pytest.raises(ValueError, match=r"images are .*resize the images or build the model for their size"):
        dense_forward(tower, torch.zeros(1, 3, 192, 192, device="meta"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_t", "merges its patches"),
        ("swinv2_tiny_window8_256", "merges its patches"),
        ("cait_xxs24_224", "class-attention layers"),
        ("xcit_nano_12_p16_224", "class-attention layers"),
        ("samvit_base_patch16", ""),
    ],
)
def test_unsupported_host_is_named_and_the_supported_are_listed(name, reason):
    with torch.device("meta"):
        model = torchvision.models.swin_t() if name == "swin_t" else timm.create_model(name)
    for call in (find_adapter, pooling_of, lambda model: attach_pool(model, "mean")):
        with pytest.raises(
            ValueError, match=rf"(?s){type(model).__qualname__}.*{reason}.*supported hosts.*torchvision Vision.*ConvNet"
        ):
            call(model)


def test_what_is_no_model_is_refused():
    for call in (pooling_of, lambda model: attach_pool(model, "mean"), lambda model: dense_forward(model, IMAGES)):
        with pytest.raises(TypeError, match=r"expected a model \(torch.nn.Module\), got a str"):
            call("torchvision:vit_b_16")


def test_another_pool_than_the_attached_is_refused():
    with pytest.raises(ValueError, match="pool_type='avg'"):
        attach_last(TimmViT(**TINY_TIMM), top_k=3).pool(torch.randn(2, 17, 16), pool_type="avg")


def test_learned_pools_are_named():
    map_vit = TimmViT(**TINY_TIMM, global_pool="map", class_token=False).eval()
    with pytest.raises(ValueError, match="AttentionPoolLatent"):
        attach_last(map_vit, top_k=3)
    assert torch.equal(dense_forward(map_vit, IMAGES).logits, map_vit(IMAGES))  # reading it is fine
    coca_tower = ClipViT(**TINY_CLIP, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4)
    with pytest.raises(ValueError, match=r"AttentionalPooler .*attentional_pool"):
        attach_last(coca_tower, top_k=3)
    clip = tiny_clip()
    clip.visual = ModifiedResNet([1, 1, 1, 1], output_dim=6, heads=2, image_size=32, width=16)
    with pytest.raises(ValueError, match="ModifiedResNet"):
        attach_last(clip, top_k=3)


def test_hosts_that_do_not_pool_need_a_pool():
    for model in (TimmViT(**TINY_TIMM, global_pool=""), ClipViT(**TINY_CLIP, pool_type="none")):
        with pytest.raises(ValueError, match="call attach_pool first"):
            dense_forward(model.eval(), IMAGES)
        assert dense_forward(attach_last(model, top_k=3), IMAGES).global_token.shape == (4, 16)


@pytest.mark.parametrize(
    "images",
    [torch.rand(3, 32, 32), torch.rand(2, 1, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None],
)
def test_wrong_images_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be float \[B, 3, H, W\], got (torch\.|a NoneType)"):
        dense_forward(tiny_torchvision(), images)


def test_docstring_examples():
    with torch.enable_grad():
        failed, attempted = doctest.testmod(last_vit.dense)
    assert (failed, attempted > 0) == (0, True)
