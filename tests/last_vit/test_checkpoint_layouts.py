"""Every checkpoint layout loads into the model it belongs to, with the outputs of the model it came from."""

import argparse
import zipfile

import numpy as np
import pytest
import timm
import torch
from checkpoint_parts import Holder, prefixed, randomised, saved, timm_vit, torchvision_vit
from clip_files import as_eva
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import nn

from last_vit.checkpoint import (
    file_sha256,
    find_state_dict,
    load_checkpoint,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)


def timm_eva():
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 8 / 3}
    as_in_clip = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
    rope = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
    return randomised(Eva(**size, **as_in_clip, **rope, num_classes=6, global_pool="token"))


def open_clip_model():
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=8, vocab_size=32, width=64, heads=2, layers=1)
    return randomised(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))


def assert_same_output(first, second):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(first(images), second(images), rtol=0, atol=1e-5)


def release_file(weights, **more):
    trainer = {"iteration": 41, "hooks": {}, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}
    return {"model": prefixed("model.", weights), "trainer": trainer, "iteration": 41, **more}


def published_names(weights):
    """torchvision's files predate its renaming of the MLP."""
    names = {n: n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.") for n in weights}
    assert any("linear_1" in name for name in names.values())
    return {names[name]: tensor for name, tensor in weights.items()}


def open_clip_training(weights):
    return {"epoch": 3, "name": "run", "state_dict": prefixed("module.", weights), "optimizer": {}}


def visual(build):
    return lambda: build().visual


@pytest.mark.parametrize(
    ("source", "write", "target", "layout"),
    [
        (torchvision_vit, release_file, torchvision_vit, "model"),
        (torchvision_vit, release_file, lambda: Holder(model=torchvision_vit()), "model"),
        (torchvision_vit, dict, torchvision_vit, "bare"),
        (torchvision_vit, lambda w: prefixed("module._orig_mod.model.", w), torchvision_vit, "bare"),
        (torchvision_vit, published_names, torchvision_vit, "bare"),
        (lambda: timm_vit(5), dict, torchvision_vit, "bare"),  # DINO's names are timm's
        (timm_vit, "safetensors", timm_vit, "bare"),
        (open_clip_model, open_clip_training, open_clip_model, "state_dict"),
        (open_clip_model, dict, visual(open_clip_model), "bare"),
        (timm_eva, lambda w: open_clip_training(prefixed("visual.trunk.", w)), timm_eva, "state_dict"),
        (timm_eva, lambda w: as_eva(prefixed("visual.trunk.", w)), timm_eva, "bare"),
    ],
    ids=[
        "release",
        "release, wrapped",
        "bare",
        "wrappers",
        "published",
        "timm",
        "safetensors",
        "open_clip",
        "tower",
        "trunk",
        "EVA",
    ],
)
def test_a_layout_loads_to_the_same_numbers(tmp_path, source, write, target, layout):
    source, target = source(), target()
    if write == "safetensors":
        path = tmp_path / "vit.safetensors"
        save_file(source.state_dict(), path)
    else:
        path = saved(tmp_path / "vit.pth", write(source.state_dict()))
    read = load_checkpoint(target, path)
    target = getattr(target, "model", target)
    assert_same_output(getattr(target, "visual", target), getattr(source, "visual", source))
    if isinstance(target, CLIP):
        torch.testing.assert_close(target.text_projection, source.text_projection)
    assert read.sha256 == file_sha256(path)
    assert (read.layout, read.pooling, read.iteration) == (layout, None, 41 if layout == "model" else None)


def test_own_layout_returns_its_pooling(tmp_path):
    pooling = {"pool": "last", "top_k": 7, "variant": "release", "sigma": None}
    save_checkpoint(tmp_path / "model.pth", release_file(torchvision_vit().state_dict(), pooling=pooling))
    assert load_checkpoint(torchvision_vit(), tmp_path / "model.pth").pooling == pooling


def test_dino_training_checkpoint(tmp_path):
    """The teacher unless told otherwise; its namespace and numpy scalars are read without running code."""
    student, teacher = timm_vit(), timm_vit()
    head = {"head.mlp.0.weight": torch.ones(4, 16), "head.last_layer.weight_v": torch.ones(8, 4)}
    file = {
        "student": prefixed("module.", {**prefixed("backbone.", student.state_dict()), **head}),
        "teacher": {**prefixed("backbone.", teacher.state_dict()), **head},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(5e-4), "weight_decay": np.float64(0.04)}]},
        "epoch": 81,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, use_fp16=True),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    path = saved(tmp_path / "dino0080.pth", file)
    for key, layout, source in ((None, "teacher", teacher), ("student", "student", student)):
        target = timm_vit()
        assert load_checkpoint(target, read_weights(path, key)).layout == layout
        assert_same_output(target, source)
    content = read_checkpoint(path)
    assert content["args"].patch_size == 16
    assert content["optimizer"]["param_groups"] == [{"lr": 5e-4, "weight_decay": 0.04}]
    assert type(content["optimizer"]["param_groups"][0]["lr"]) is float


SCALARS = [np.float64(0.1), np.float32(0.5), np.float16(0.25), np.int64(-3), np.uint8(200), np.bool_(True)]


@pytest.mark.parametrize("value", SCALARS)
def test_numpy_scalars_keep_their_value(tmp_path, value):
    """Also those of numpy 1, which names its module differently."""
    new, old = saved(tmp_path / "scalar.pth", {"value": value}), tmp_path / "old.pth"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(new)["value"] == read_checkpoint(old)["value"] == value.item()


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_original_dinov2_file_loads_into_timm(tmp_path, name):
    """With a mask token, which no model reads, and, where there are registers, with a position for CLS."""
    source = timm.create_model(name, img_size=56, depth=2).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    file = {**source.state_dict(), "mask_token": torch.zeros(1, 384)}
    if "reg_token" in file:
        file["register_tokens"] = file.pop("reg_token")
        file["pos_embed"] = torch.cat([file["cls_token"] - 0.5, file["pos_embed"]], dim=1)
        file["cls_token"] = torch.full((1, 1, 384), 0.5)
    target = timm.create_model(name, img_size=56, depth=2).eval()
    load_checkpoint(target, saved(tmp_path / "dinov2.pth", file))
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(target(images), source(images), rtol=1e-4, atol=1e-4)


def test_unwrap_takes_prefixes_only_where_all_names_have_them():
    names = ["model.norm.weight", "head.weight", "neck.backbone.model.bias"]
    assert list(find_state_dict({name: torch.ones(2) for name in names})[1]) == names


@pytest.mark.parametrize(
    ("content", "key", "match"),
    [
        ({"teacher": {"a": torch.ones(1)}, "epoch": 3}, "ema", r"no entry 'ema'.*teacher, epoch"),
        ({"net": {"a": torch.ones(1)}, "epoch": 3}, None, "not tensors in 'bare': net, epoch"),
        ({"model": {}}, None, "'model' is not a filled dict"),
    ],
)
def test_unwrap_names_what_is_there(content, key, match):
    with pytest.raises(ValueError, match=match):
        find_state_dict(content, key)
