"""Adapters on ViT hosts: what is particular to one library, real configurations, and the errors."""

import doctest
import subprocess
import sys

import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer

import last_vit.dense
from last_vit.adapters import find_adapter
from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
TINY_CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny_torchvision() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_registers_have_no_vote():
    model = attach_last(TimmViT(**TINY_TIMM, reg_tokens=4), top_k=3)
    tokens = torch.randn(2, 5 + 16, 16)
    tokens[:, :5] = 1e6
    assert torch.equal(model.pool(tokens), last_pool(tokens[:, 5:], top_k=3))


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


@pytest.mark.parametrize(
    "name", ["timm:eva02_tiny_patch14_224", "timm:vit_tiny_r_s16_p8_224", "open_clip:ViT-S-32-alt"]
)
def test_real_configurations(name):
    library, arch = name.split(":")
    if library == "timm":
        model = timm.create_model(arch, global_pool="token", depth=2).eval()
    else:
        config = open_clip.get_model_config(arch)
        model = open_clip.model._build_vision_tower(config["embed_dim"], {**config["vision_cfg"], "layers": 2}).eval()
    images = torch.randn(1, 3, 224, 224)
    own, keys = model(images), list(model.state_dict())
    assert torch.equal(attach_pool(model, "cls")(images), own)
    out = dense_forward(attach_last(model, top_k=2), images)
    assert torch.equal(out.logits, model(images))
    torch.testing.assert_close(out.global_token, last_pool(out.patch_tokens, top_k=2))
    assert list(model.state_dict()) == keys
    assert not torch.allclose(out.logits, own)


def test_images_of_another_size_are_refused():
    config = open_clip.get_model_config("EVA02-B-16")
    with torch.device("meta"):
        tower = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
        model = timm.create_model("vit_tiny_patch16_224")
    images = torch.zeros(1, 3, 192, 192, device="meta")
    for host in (model, tower):
        with pytest.raises(ValueError, match="resize the images or build the model for their size"):
            dense_forward(host, images)
    with torch.device("meta"):
        free = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
    assert dense_forward(free, images).grid_hw == (12, 12)


@pytest.mark.parametrize(
    "build_model",
    [
        lambda: nn.Linear(2, 2),
        lambda: torchvision.models.swin_t(),
        lambda: timm.create_model("test_vit_relpos"),
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    ],
)
def test_unsupported_host_is_named_and_the_supported_are_listed(build_model):
    with torch.device("meta"):
        model = build_model()
    for call in (find_adapter, pooling_of, lambda model: attach_pool(model, "mean")):
        with pytest.raises(ValueError, match=r"supported hosts") as error:
            call(model)
        assert type(model).__qualname__ in str(error.value)
        for word in ("torchvision VisionTransformer", "Eva", "open_clip", "ConvNets"):
            assert word in str(error.value)


@pytest.mark.parametrize("model", [None, "torchvision:vit_b_16", torch.zeros(2)])
def test_what_is_no_model_is_refused(model):
    for call in (pooling_of, lambda model: attach_pool(model, "mean"), lambda model: dense_forward(model, IMAGES)):
        with pytest.raises(TypeError, match=r"expected a model \(torch.nn.Module\), got a "):
            call(model)


def test_learned_pools_are_named():
    map_vit = TimmViT(**TINY_TIMM, global_pool="map", class_token=False).eval()
    with pytest.raises(ValueError, match="AttentionPoolLatent"):
        attach_last(map_vit, top_k=3)
    assert torch.equal(dense_forward(map_vit, IMAGES).logits, map_vit(IMAGES))  # reading it is fine
    coca_tower = ClipViT(**TINY_CLIP, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4)
    with pytest.raises(ValueError, match=r"AttentionalPooler .*attentional_pool"):
        attach_last(coca_tower, top_k=3)
    text_cfg = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    resnet_cfg = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
    with pytest.raises(ValueError, match="ModifiedResNet"):
        attach_last(open_clip.model.CLIP(6, vision_cfg=resnet_cfg, text_cfg=text_cfg), top_k=3)


def test_hosts_that_do_not_pool_need_a_pool():
    for model in (TimmViT(**TINY_TIMM, global_pool=""), ClipViT(**TINY_CLIP, pool_type="none")):
        with pytest.raises(ValueError, match="call attach_pool first"):
            dense_forward(model.eval(), IMAGES)
        assert dense_forward(attach_last(model, top_k=3), IMAGES).global_token.shape == (8, 16)


@pytest.mark.parametrize(
    "images",
    [torch.rand(3, 32, 32), torch.rand(2, 1, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None],
)
def test_wrong_images_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be float \[B, 3, H, W\], got (torch\.|a NoneType)"):
        dense_forward(tiny_torchvision(), images)


@pytest.mark.parametrize("build_model", [tiny_torchvision, lambda: ClipViT(**TINY_CLIP)])
def test_wrong_image_size_is_refused(build_model):
    with pytest.raises(ValueError, match=r"images are \(32, 48\) .* takes \(32, 32\) only"):
        dense_forward(build_model(), torch.rand(1, 3, 32, 48))


def test_a_call_for_another_pool_type_is_refused():
    with pytest.raises(ValueError, match="pool_type='avg'"):
        attach_last(TimmViT(**TINY_TIMM), top_k=3).pool(torch.rand(1, 17, 16), pool_type="avg")


def test_docstring_examples():
    with torch.enable_grad():
        failed, attempted = doctest.testmod(last_vit.dense)
    assert (failed, attempted > 0) == (0, True)


def test_adapters_import_no_host_library():
    code = "import sys, last_vit.dense; print(sorted({'timm', 'torchvision', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
