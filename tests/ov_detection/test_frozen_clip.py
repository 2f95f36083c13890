"""The frozen tower: what it computes, for native and EVA towers, and that nothing unfreezes, moves or stores it."""

import copy
import json

import pytest
import torch
from fvit.frozen_clip import ClipFeatureCache, FrozenClip
from torch import nn
from torch.nn import functional as F

from last_vit.checkpoint import save_checkpoint
from last_vit.clip_models import load_clip

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NATIVE = {"embed_dim": 12, "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 4, "width": 24, "head_width": 8}}
EVA = {
    "embed_dim": 12,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 56,
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": None,
    },
}


@pytest.fixture
def arch(tmp_path):
    """Writes an open_clip config and gives its path, which stands for an architecture."""

    def write(config, name):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**config, "text_cfg": TEXT}))
        return str(path)

    return write


@pytest.fixture
def native(arch):
    return lambda **options: FrozenClip(arch(NATIVE, "fvit_native"), random_seed=0, **{"bf16": False, **options})


def plain_tower(tower, images, value_only):
    """An open_clip ViT in float64, block by block -> raw outputs of all blocks and the normalised dense map."""
    tower = tower.double()
    x = tower.conv1(images.double())
    grid_hw = x.shape[2:]
    positions = tower.positional_embedding
    grid = positions[1:].reshape(1, *tower.grid_size, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=tuple(grid_hw), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    cls = (tower.class_embedding + positions[0]).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([cls, x.flatten(2).transpose(1, 2) + grid], dim=1))
    maps = []
    for place, block in enumerate(tower.transformer.resblocks):
        normed, width = block.ln_1(x), x.shape[2]
        q, k, v = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=2)
        if not (value_only and place == len(tower.transformer.resblocks) - 1):
            q, k, v = (t.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
            weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)
            v = (weights @ v).transpose(1, 2).reshape(len(x), -1, width)
        x = x + F.linear(v, block.attn.out_proj.weight, block.attn.out_proj.bias)
        x = x + block.mlp(block.ln_2(x))
        maps.append(x[:, 1:].transpose(1, 2).unflatten(2, tuple(grid_hw)))
    dense = tower.ln_post(x[:, 1:]) @ tower.proj
    return maps, (dense / dense.norm(dim=2, keepdim=True)).transpose(1, 2).unflatten(2, tuple(grid_hw))


@pytest.mark.parametrize("dense", ["last-block-value", "plain"])
@pytest.mark.parametrize("image_hw", [(32, 32), (48, 80)])
def test_against_float64(native, dense, image_hw):
    clip = native(dense=dense)
    assert (clip.width, clip.embed_dim, clip.patch_size, clip.blocks) == (24, 12, 8, (0, 1, 2, 3))
    images = torch.randn(2, 3, *image_hw)
    features = clip(images)
    alone = clip(images, with_dense=False)
    maps, expected = plain_tower(clip.tower, images, dense == "last-block-value")
    assert alone.dense is None
    for ours, same, plain in zip(features.blocks, alone.blocks, maps, strict=True):
        torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours, same)
    torch.testing.assert_close(features.dense.double(), expected, rtol=1e-4, atol=1e-5)


def test_eva_with_patch_14(arch):
    clip = FrozenClip(arch(EVA, "fvit_eva"), random_seed=0, bf16=False)
    assert (clip.width, clip.embed_dim, clip.patch_size, clip.blocks) == (192, 12, 14, (3, 5, 7, 11))
    images = torch.randn(2, 3, 56, 84)
    features = clip(images)
    assert [tuple(block.shape) for block in features.blocks] == [(2, 192, 4, 6)] * 4
    torch.testing.assert_close(features.dense.norm(dim=1), torch.ones(2, 4, 6))
    plain = FrozenClip(arch(EVA, "fvit_eva"), random_seed=0, bf16=False, dense="plain")(images)
    assert torch.equal(features.blocks[2], plain.blocks[2])
    assert not torch.allclose(features.blocks[3], plain.blocks[3])


def test_nothing_unfreezes_it(native):
    for clip in (native(), native(in_checkpoint=True)):
        detector = nn.Sequential(clip, nn.Linear(2, 2)).train()
        assert clip.training
        assert not any(module.training for module in clip.tower.modules())
        assert not any(parameter.requires_grad for parameter in clip.tower.parameters())
        features = detector[0](torch.randn(1, 3, 32, 32, requires_grad=True))
        assert not any(block.requires_grad for block in features.blocks)
        assert not features.dense.requires_grad


def test_it_is_in_the_state_dict_only_when_asked(native):
    without, within = native(), native(in_checkpoint=True)
    assert list(without.state_dict()) == []
    assert list(without.parameters()) == []
    assert {f"tower.{name}" for name in without.tower.state_dict()} == set(within.state_dict())
    without.load_state_dict({}, strict=True)
    twin = copy.deepcopy(without)
    assert twin.tower is not without.tower
    assert list(twin.parameters()) == []


def test_to_moves_it_all_the_same(native):
    clip = native().double()
    assert clip.tower.conv1.weight.dtype == torch.float64
    assert clip.to("meta").tower.conv1.weight.device.type == "meta"


def test_bfloat16_is_close_and_answers_in_float32(native):
    images = torch.randn(2, 3, 48, 32)
    exact, rounded = native()(images), native(bf16=True)(images)
    assert rounded.dense.dtype == rounded.blocks[0].dtype == torch.float32
    assert not torch.equal(exact.dense, rounded.dense)
    assert (exact.dense * rounded.dense).sum(dim=1).min() > 0.999


def test_cache_serves_training_only(native):
    clip, images = native(cache_images=2), torch.randn(2, 3, 32, 32)
    clip.train()
    first, second = clip(images, with_dense=False), clip(images, with_dense=False)
    assert all(torch.equal(a, b) for a, b in zip(first.blocks, second.blocks, strict=True))
    assert len(clip.cache) == 2
    clip.eval()(torch.randn(1, 3, 32, 32), with_dense=False)
    assert len(clip.cache) == 2


def test_checkpoint_weights_are_the_ones_used(arch, tmp_path):
    path = arch(NATIVE, "fvit_native")
    model = load_clip(path, None, random_seed=7).model
    save_checkpoint(tmp_path / "clip.pth", {"state_dict": model.state_dict()})
    clip = FrozenClip(path, tmp_path / "clip.pth")
    assert torch.equal(clip.tower.conv1.weight, model.visual.conv1.weight)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dense": "mean"}, "last-block-value, plain"),
        ({"blocks": (0, 1, 2, 4)}, r"in \[0, 3\]"),
        ({"blocks": (0, 2, 1, 3)}, "shallow to deep"),
        ({"blocks": (1, 2, 3)}, "four block indices"),
        ({"random_seed": None}, "either a checkpoint or a random_seed"),
    ],
)
def test_errors(arch, options, match):
    with pytest.raises(ValueError, match=match):
        FrozenClip(arch(NATIVE, "fvit_native"), **{"random_seed": 0, **options})


class Counting:
    """Two maps per image, and how many images were computed."""

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        return images * 2, images[:, :, ::2, ::2] + 1


def test_cache_computes_each_image_once():
    cache, compute = ClipFeatureCache(10, torch.float32), Counting()
    images = torch.randn(4, 3, 8, 8)
    for batch in (images[:2], images[1:3], images[:4], images[[0, 0]]):
        maps = cache.get(batch, compute)
        for ours, expected in zip(maps, (batch * 2, batch[:, :, ::2, ::2] + 1), strict=True):
            assert torch.equal(ours, expected)
    assert compute.images == len(cache) == 4
    for view in (images[:1].flip(3), images[:1, :, :, :4]):  # another image
        assert torch.equal(cache.get(view, compute)[0], view * 2)
    assert compute.images == 6


def test_cache_keeps_the_first_images():
    cache, compute = ClipFeatureCache(2, torch.float32), Counting()
    images = torch.randn(5, 3, 8, 8)
    for _ in range(3):
        for image in images:
            assert torch.equal(cache.get(image[None], compute)[0], image[None] * 2)
    assert (len(cache), compute.images) == (2, 2 + 3 * 3)


def test_cache_in_bfloat16_is_the_same_at_the_first_step_and_later():
    cache, image = ClipFeatureCache(4, torch.bfloat16), torch.randn(1, 3, 8, 8)
    first, second = (cache.get(image, Counting())[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, image * 2, rtol=1e-2, atol=1e-2)
