"""Dense CLIP features: equal to the towers written out plainly, at any size, and the model is as before."""

import copy
from types import SimpleNamespace

import clip_towers_parts
import open_clip.model
import pytest
import torch
from clip_towers_parts import bicubic, eva_tower, native_tower, plain_eva, plain_native, randomised
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from torch import nn
from torch.nn import functional as F

from last_vit import attach_last, clip_last_block
from last_vit.clip_dense import (
    POSITIONS,
    clip_block_features,
    clip_dense_features,
    clip_dense_forward,
    resize_positions,
)
from last_vit.names import LAST_BLOCKS

TOWERS = {"native": (native_tower, plain_native), "EVA": (eva_tower, plain_eva)}
LOW = (torch.bfloat16, torch.float16)
# native; not square; larger on one side and smaller on the other; sides that are no multiple of the patch
SIZES = [(32, 32), (24, 48), (40, 16), (45, 71)]
each_tower = pytest.mark.parametrize("name", TOWERS)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@each_tower
@pytest.mark.parametrize(
    ("kind", "size", "position", "std"),
    [
        *((kind, (40, 16), "sclip", 5.0) for kind in LAST_BLOCKS),
        *(("naclip", size, "sclip", std) for size in SIZES for std in (5.0, 1.5)),
        ("fvit", (24, 48), "fvit", 5.0),
    ],
)
def test_equals_the_tower_written_out(name, kind, size, position, std, monkeypatch):
    monkeypatch.setattr(clip_towers_parts, "naclip_std", std)
    width = {} if std == 5.0 else {"gaussian_std": std}
    build, plain = TOWERS[name]
    tower, batch = build().double(), images(2, 3, *size).double()
    with torch.no_grad():
        found = clip_dense_forward(tower, batch, blocks=[2, 0], last_block=kind, position=position, **width)
    assert found.grid_hw == (size[0] // 8, size[1] // 8)
    for i, image in enumerate(batch):
        features, blocks = plain(tower, image, kind, position)
        # the rotary tables of timm are float32
        torch.testing.assert_close(found.features[i], features, rtol=1e-5, atol=1e-5 if name == "EVA" else 1e-8)
        for block, index in zip(found.blocks, [2, 0], strict=True):
            expected = blocks[index].T.reshape(16, *found.grid_hw)
            torch.testing.assert_close(block[i], expected, rtol=1e-5, atol=1e-5 if name == "EVA" else 1e-8)


@each_tower
def test_vanilla_at_the_native_size_is_the_hosts_own(name):
    tower, batch = TOWERS[name][0](), images(2, 3, 32, 32)
    with torch.no_grad():
        (tokens,) = tower.forward_intermediates(
            batch, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )["image_intermediates"]
        expected = tokens @ tower.proj if name == "native" else tower.trunk.head(tokens)
        features, grid_hw = clip_dense_features(tower, batch)
        blocks = tower.forward_intermediates(batch, indices=[0, 1, 2], intermediates_only=True)["image_intermediates"]
        found = clip_block_features(tower, batch, [0, 1, 2])
    assert grid_hw == (4, 4)
    assert torch.equal(features, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, blocks, strict=True))


@each_tower
@pytest.mark.parametrize("kind", ["vanilla", "naclip"])
def test_the_model_is_as_before(name, kind):
    tower = TOWERS[name][0]()
    batch, other = images(2, 3, 32, 32), images(1, 3, 48, 24)
    before, expected = {path: dict(vars(module)) for path, module in tower.named_modules()}, tower(batch)
    weights = copy.deepcopy(tower.state_dict())
    clip_dense_forward(tower, other, blocks=[1], last_block=kind)
    with pytest.raises(RuntimeError):
        clip_dense_forward(tower, other.to("meta"), last_block=kind)  # fails within
    assert dict(tower.named_modules()).keys() == before.keys()
    for path, module in tower.named_modules():
        assert vars(module).keys() == before[path].keys(), path
        assert all(vars(module)[key] is value for key, value in before[path].items()), path
    assert all(torch.equal(value, weights[key]) for key, value in tower.state_dict().items())
    assert torch.equal(tower(batch), expected)


@each_tower
def test_blocks_alone_stop_early(name):
    tower, batch = TOWERS[name][0](), images(1, 3, 40, 24)
    blocks = tower.transformer.resblocks if name == "native" else tower.trunk.blocks
    ran = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    (block,) = clip_block_features(tower, batch, [1])
    assert ran == [0, 1]
    assert torch.equal(block, clip_dense_forward(tower, batch, blocks=[1]).blocks[0])
    assert block.shape == (1, 16, 5, 3)


@each_tower
@pytest.mark.parametrize("kind", ["vanilla", "sclip"])
def test_lower_precision(name, kind):
    tower, batch = TOWERS[name][0](), images(1, 3, 40, 56)
    with torch.no_grad():
        expected = clip_dense_features(tower, batch, kind)[0]
        with torch.autocast("cpu", torch.bfloat16):
            autocast = clip_dense_features(tower, batch, kind)[0]
        low, half = (clip_dense_features(copy.deepcopy(tower).to(t), batch, kind)[0] for t in LOW)
    assert (low.dtype, half.dtype) == LOW
    for found, error in ((autocast, 0.1), (low, 0.1), (half, 0.02)):
        assert (found.float() - expected).abs().mean() < error * expected.std()


@each_tower
def test_gradients_follow_the_caller(name):
    tower, batch = TOWERS[name][0](), images(1, 3, 40, 24)
    clip_dense_features(tower, batch, "sclip")[0].sum().backward()
    positions = tower.positional_embedding if name == "native" else tower.trunk.pos_embed
    assert positions.grad.abs().sum() > 0
    with torch.no_grad():
        assert not clip_dense_features(tower, batch)[0].requires_grad


def whole_clip(visual: nn.Module) -> CLIP:
    model = CLIP(12, {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
                 {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8})  # fmt: skip
    model.visual = visual
    return model.eval()


@each_tower
def test_pooling_and_wrappers_make_no_difference(name):
    tower, batch = TOWERS[name][0](), images(1, 3, 40, 24)
    expected = clip_dense_features(tower, batch)[0]
    assert torch.equal(clip_dense_features(whole_clip(tower), batch)[0], expected)
    assert torch.equal(clip_dense_features(torch.compile(tower), batch)[0], expected)
    assert torch.equal(clip_dense_features(attach_last(tower, top_k=2), batch)[0], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_fused": True},
        {"init_values": 0.3},
        {"qk_norm": True},
        {"num_reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "avg", "class_token": True},
    ],
    ids="-".join,
)
def test_other_kinds_of_eva(changes):
    """The host's own attention, written through the code of the variants, changes nothing; all variants run."""
    tower, batch, own = eva_tower(**changes), images(2, 3, 32, 32), F.scaled_dot_product_attention
    with torch.no_grad():
        expected = clip_dense_features(tower, batch)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clip_last_block, "_mix", lambda q, k, v, *_, **__: own(q, k, v).transpose(1, 2).flatten(2))
            torch.testing.assert_close(clip_dense_features(tower, batch, "sclip")[0], expected, rtol=1e-5, atol=1e-5)
        for kind in LAST_BLOCKS:
            for size in SIZES:
                features, grid = clip_dense_features(tower, images(1, 3, *size), kind)
                assert features.shape == (1, grid[0] * grid[1], 12)
                assert features.isfinite().all()


def test_dynamic_eva_equals_fixed_eva():
    fixed, dynamic = eva_tower(), eva_tower(dynamic_img_size=True)
    dynamic.load_state_dict(fixed.state_dict())
    for size in SIZES:
        found, expected = (clip_dense_features(tower, images(1, 3, *size))[0] for tower in (dynamic, fixed))
        torch.testing.assert_close(found, expected)


def timm_tower():
    return randomised(TimmModel("test_vit", 12, image_size=160, pool="token", proj="linear"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (timm_tower, "Block"),
        (lambda: eva_tower(attn_type="rope"), "EvaBlock with .*AttentionRope"),
        (lambda: native_tower(block_type="custom", qk_norm=True), "CustomResidualAttentionBlock"),
    ],
    ids=["plain timm", "another attention in EVA", "custom blocks"],
)
def test_other_blocks_take_vanilla_only(build, message):
    tower, batch = build(), images(1, 3, 64, 100)
    features, grid_hw = clip_dense_features(tower, batch)
    assert grid_hw == ((4, 6) if build is timm_tower else (8, 12))
    assert features.shape == (1, grid_hw[0] * grid_hw[1], 12)
    with pytest.raises(ValueError, match=f"'naclip' is not defined.*{message}.*takes 'vanilla'"):
        clip_dense_features(tower, batch, "naclip")


def test_plain_timm_tower_at_its_own_size():
    tower, batch = timm_tower(), images(2, 3, 160, 160)
    (tokens,) = tower.forward_intermediates(batch, 1, normalize_intermediates=True, output_fmt="NLC")[
        "image_intermediates"
    ]
    torch.testing.assert_close(clip_dense_features(tower, batch)[0], tower.head(tokens))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": torch.zeros(3, 32, 32)}, r"float \[B, 3, H, W\]"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, r"float \[B, 3, H, W\], got torch.uint8"),
        ({"images": torch.zeros(1, 3, 32, 7)}, r"\(32, 7\) pixels are smaller than a patch of \(8, 8\)"),
        ({"blocks": [3]}, r"indices in \[0, 2\]"),
        ({"blocks": [-1]}, r"indices in \[0, 2\]"),
        ({"last_block": "gem"}, r"one of vanilla, maskclip, .*got 'gem'"),
        ({"position": "nearest"}, r"one of sclip, fvit, open_clip, got 'nearest'"),
        ({"model": native_tower(patch_dropout=0.5).train()}, r"model\.eval\(\)"),
        ({"model": native_tower(attentional_pool=True, attn_pooler_heads=2)}, "AttentionalPooler"),
        ({"model": TimmModel("test_resnet", 12, proj="linear").eval()}, r"no dense CLIP features.*ResNet"),
        ({"model": TimmModel("test_vit", 12, pool="map", proj=None).eval()}, r"learned AttentionPoolLatent"),
        ({"model": nn.Linear(2, 2)}, "has no adapter"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        clip_dense_forward(**{"model": native_tower(), "images": torch.zeros(1, 3, 32, 32), **arguments})


# Positions


def table(height, width, prefix=1, channels=5):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(prefix + height * width, channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("how", ["sclip", "fvit"])
@pytest.mark.parametrize(("old", "new", "prefix"), [((14, 14), (21, 32), 1), ((3, 5), (5, 3), 0), ((8, 8), (4, 16), 3)])
def test_cubic_at_the_right_points(how, old, new, prefix):
    positions, guard = table(*old, prefix), 0.1 if how == "sclip" else 0.0
    found = resize_positions(positions[None], prefix, old, new, how)[0]
    steps = (old[0] / (new[0] + guard), old[1] / (new[1] + guard))
    expected = bicubic(positions[prefix:].reshape(*old, -1), new, steps).reshape(new[0] * new[1], -1)
    assert torch.equal(found[:prefix], positions[:prefix])
    torch.testing.assert_close(found[prefix:], expected)


def test_open_clip_is_what_open_clip_does():
    positions = table(4, 4).float()
    weights = {"visual.positional_embedding": positions}
    open_clip.model.resize_pos_embed(weights, SimpleNamespace(visual=SimpleNamespace(grid_size=(7, 3))))
    found = resize_positions(positions, 1, (4, 4), (7, 3), "open_clip")
    assert torch.equal(found, weights["visual.positional_embedding"])


@pytest.mark.parametrize("how", POSITIONS)
def test_the_same_grid_is_left_alone(how):
    positions = table(4, 4).half()
    assert resize_positions(positions, 1, (4, 4), (4, 4), how) is positions
    assert resize_positions(positions, 1, (4, 4), (5, 4), how).dtype == torch.float16
    with pytest.raises(ValueError, match="17 positions"):
        resize_positions(positions, 1, (4, 5), (5, 5), how)
