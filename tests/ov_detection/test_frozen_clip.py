"""The frozen tower: what it computes, for native and EVA towers, and that nothing unfreezes, moves or stores it."""

import copy
import json

import pytest
import torch
from fvit.frozen_clip import FeatureCache, FrozenClip
from torch import nn
from torch.nn import functional as F

from last_vit.checkpoint import save_checkpoint
from last_vit.clip_dense import clip_dense_forward
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


@pytest.mark.parametrize(("dense", "kind"), [("last-block-value", "fvit"), ("plain", "vanilla")])
@pytest.mark.parametrize(
    ("name", "config", "facts"),
    [("native", NATIVE, (24, 12, 8, (0, 1, 2, 3))), ("eva", EVA, (192, 12, 14, (3, 5, 7, 11)))],
)
def test_features_are_the_towers(arch, name, config, facts, dense, kind):
    """Those of clip_dense_forward, whose tests write the towers out; the dense map is normalised."""
    clip = FrozenClip(arch(config, f"fvit_{name}"), random_seed=0, bf16=False, dense=dense)
    assert (clip.width, clip.embed_dim, clip.patch_size, clip.blocks) == facts
    images = torch.randn(2, 3, 6 * clip.patch_size, 10 * clip.patch_size)
    features, alone = clip(images), clip(images, with_dense=False)
    with torch.no_grad():
        expected = clip_dense_forward(clip.tower.double(), images.double(), clip.blocks, kind, "fvit")
    assert alone.dense is None
    for ours, same, plain in zip(features.blocks, alone.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours, same)
    unit = F.normalize(expected.features, dim=2).transpose(1, 2).unflatten(2, (6, 10))
    torch.testing.assert_close(features.dense.double(), unit, rtol=1e-4, atol=1e-4)


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
    assert twin.to("meta").tower.conv1.weight.device.type == "meta"


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


@pytest.mark.parametrize(("size", "dtype", "tolerance"), [(4, torch.float32, 0), (2, torch.bfloat16, 1e-2)])
def test_cache_computes_the_first_images_once(size, dtype, tolerance):
    """And every later one each time; what is kept, in its own type, is what the first time gave."""
    cache, compute, images = FeatureCache(size, dtype), Counting(), torch.randn(4, 3, 8, 8)
    batches = (images[:2], images[1:3], images[:4], images[[0, 0]])
    for batch in batches:
        maps = cache.get(batch, compute)
        assert {level.dtype for level in maps} == {torch.float32}
        for ours, expected in zip(maps, (batch * 2, batch[:, :, ::2, ::2] + 1), strict=True):
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        assert all(map(torch.equal, maps, cache.get(batch, compute)))
    assert len(cache) == size
    assert compute.images == (4 if size == 4 else 2 + 2 * (1 + 2))
    for view in (images[:1].flip(3), images[:1, :, :, :4]):  # another image
        torch.testing.assert_close(cache.get(view, compute)[0], view * 2, rtol=tolerance, atol=tolerance)
    assert compute.images == (6 if size == 4 else 10)
