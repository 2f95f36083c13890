"""Every checkpoint layout loads into the model it belongs to, with the outputs of the model it came from."""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_parts import Holder, prefixed, randomised, saved, timm_vit, torchvision_vit
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


def timm_eva() -> Eva:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 8 / 3}
    as_in_clip = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
    rope = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
    return randomised(Eva(**size, **as_in_clip, **rope, num_classes=6, global_pool="token"))


def open_clip_model() -> CLIP:
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=8, vocab_size=32, width=64, heads=2, layers=1)
    return randomised(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))


def assert_same_output(first: nn.Module, second: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(first(images), second(images), rtol=0, atol=1e-5)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def release_file(model: nn.Module, **more: object) -> dict[str, object]:
    trainer = {"iteration": 41, "hooks": {}, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}
    return {"model": prefixed("model.", model.state_dict()), "trainer": trainer, "iteration": 41, **more}


def test_release_layout_loads_into_bare_and_wrapped_model(tmp_path: Path, images: torch.Tensor) -> None:
    source = torchvision_vit()
    path = saved(tmp_path / "ViT_190k.pth", release_file(source))
    for target in (torchvision_vit(), Holder(model=torchvision_vit())):
        metadata = load_checkpoint(target, path)
        assert_same_output(getattr(target, "model", target), source, images)
        assert metadata.sha256 == file_sha256(path)
        assert (metadata.layout, metadata.pooling, metadata.iteration) == ("model", None, 41)


def test_own_layout_returns_its_pooling(tmp_path: Path) -> None:
    pooling = {"pool": "last", "top_k": 7, "variant": "release", "sigma": None}
    path = tmp_path / "model.pth"
    save_checkpoint(path, release_file(torchvision_vit(), pooling=pooling))
    assert load_checkpoint(torchvision_vit(), path).pooling == pooling


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model."])
def test_bare_torchvision_weights_with_any_wrapper(tmp_path: Path, images: torch.Tensor, prefix: str) -> None:
    source, target = torchvision_vit(), torchvision_vit()
    metadata = load_checkpoint(target, saved(tmp_path / "vit.pth", prefixed(prefix, source.state_dict())))
    assert_same_output(target, source, images)
    assert metadata.layout == "bare"
    assert metadata.iteration is None


def test_torchvision_weights_with_the_mlp_names_of_the_published_files(tmp_path: Path, images: torch.Tensor) -> None:
    source, target = torchvision_vit(), torchvision_vit()
    published = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in source.state_dict().items()
    }
    assert any("linear_1" in name for name in published)
    load_checkpoint(target, saved(tmp_path / "vit_b_16.pth", published))
    assert_same_output(target, source, images)


def dino_file(student: nn.Module, teacher: nn.Module) -> dict[str, object]:
    head = {"head.mlp.0.weight": torch.ones(4, 16), "head.last_layer.weight_v": torch.ones(8, 4)}
    return {
        "student": prefixed("module.", {**prefixed("backbone.", student.state_dict()), **head}),
        "teacher": {**prefixed("backbone.", teacher.state_dict()), **head},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(5e-4), "weight_decay": np.float64(0.04)}]},
        "epoch": 81,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, use_fp16=True),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def test_dino_training_checkpoint_loads_the_teacher_unless_told_otherwise(tmp_path: Path, images: torch.Tensor) -> None:
    student, teacher = timm_vit(), timm_vit()
    path = saved(tmp_path / "dino0080.pth", dino_file(student, teacher))
    for key, layout, source in ((None, "teacher", teacher), ("student", "student", student)):
        target = timm_vit()
        assert load_checkpoint(target, read_weights(path, key)).layout == layout
        assert_same_output(target, source, images)


def test_dino_namespace_and_numpy_scalars_read_without_pickle(tmp_path: Path) -> None:
    content = read_checkpoint(saved(tmp_path / "dino.pth", dino_file(timm_vit(), timm_vit())))
    assert content["args"].patch_size == 16
    assert content["optimizer"]["param_groups"] == [{"lr": 5e-4, "weight_decay": 0.04}]
    assert type(content["optimizer"]["param_groups"][0]["lr"]) is float


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float16(0.25), np.int64(-3), np.uint8(200), np.bool_(True), np.int8(-7)]
)
def test_numpy_scalars_keep_their_value(tmp_path: Path, value: np.generic) -> None:
    assert read_checkpoint(saved(tmp_path / "scalar.pth", {"value": value}))["value"] == value.item()


def test_numpy_scalars_of_numpy_1_files(tmp_path: Path) -> None:
    new, old = saved(tmp_path / "scalar.pth", {"value": np.float64(0.1)}), tmp_path / "old.pth"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(old)["value"] == 0.1


def test_dino_backbone_loads_into_torchvision(tmp_path: Path, images: torch.Tensor) -> None:
    source, target = timm_vit(num_classes=5), torchvision_vit()
    load_checkpoint(target, saved(tmp_path / "dino_deitsmall16_pretrain.pth", source.state_dict()))
    assert_same_output(target, source, images)


def test_open_clip_training_checkpoint(tmp_path: Path, images: torch.Tensor) -> None:
    source, target = open_clip_model(), open_clip_model()
    content = {"epoch": 3, "name": "run", "state_dict": prefixed("module.", source.state_dict()), "optimizer": {}}
    assert load_checkpoint(target, saved(tmp_path / "epoch_3.pt", content)).layout == "state_dict"
    assert_same_output(target.visual, source.visual, images)
    torch.testing.assert_close(target.text_projection, source.text_projection)


def test_image_tower_alone_from_a_whole_clip(tmp_path: Path, images: torch.Tensor) -> None:
    source, target = open_clip_model(), open_clip_model().visual
    load_checkpoint(target, saved(tmp_path / "clip.pt", source.state_dict()))
    assert_same_output(target, source.visual, images)


def eva_original(eva: Eva) -> dict[str, torch.Tensor]:
    """The names of the original EVA-CLIP files, written down one by one."""
    names = {
        "mlp.norm.": "mlp.ffn_ln.",
        "attn.norm.": "attn.inner_attn_ln.",
        "mlp.fc1_g.": "mlp.w1.",
        "mlp.fc1_x.": "mlp.w2.",
        "mlp.fc2.": "mlp.w3.",
        "attn.q_proj.bias": "attn.q_bias",
        "attn.v_proj.bias": "attn.v_bias",
    }
    original = {"text.positional_embedding": torch.ones(4, 4), "logit_scale": torch.tensor(4.6)}
    for name, tensor in eva.state_dict().items():
        for timm_part, eva_part in names.items():
            name = name.replace(timm_part, eva_part)
        original["visual." + name] = tensor
    rope = {"visual.rope.freqs_cos": torch.ones(16, 8), "visual.blocks.1.attn.rope.freqs_sin": torch.ones(16, 8)}
    return {**original, **rope}


def open_clip_eva() -> Holder:
    """The names of open_clip's model with a timm tower; its smallest real one has 86M parameters."""
    model = Holder(visual=Holder(trunk=timm_eva()), text=nn.Module())
    model.text.positional_embedding = nn.Parameter(torch.zeros(4, 4))
    model.logit_scale = nn.Parameter(torch.zeros(()))
    return model


def test_original_eva_file_loads_into_open_clip_and_from_there_into_timm(tmp_path: Path, images: torch.Tensor) -> None:
    source, target, tower = timm_eva(), open_clip_eva(), timm_eva()
    load_checkpoint(target, saved(tmp_path / "eva.pt", eva_original(source)))
    assert_same_output(target.visual.trunk, source, images)
    assert target.text.positional_embedding.sum() == 16
    assert target.logit_scale.item() == pytest.approx(4.6)
    load_checkpoint(tower, saved(tmp_path / "open_clip.pt", {"state_dict": prefixed("module.", target.state_dict())}))
    assert_same_output(tower, source, images)


def test_safetensors(tmp_path: Path, images: torch.Tensor) -> None:
    source, target = timm_vit(), timm_vit()
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    load_checkpoint(target, tmp_path / "vit.safetensors")
    assert_same_output(target, source, images)


def test_unwrap_takes_prefixes_only_where_all_names_have_them() -> None:
    weights = {
        "model.norm.weight": torch.ones(2),
        "head.weight": torch.ones(2),
        "neck.backbone.model.bias": torch.ones(2),
    }
    assert list(find_state_dict(weights)[1]) == list(weights)


def test_unwrap_names_what_is_there_when_the_key_is_not() -> None:
    with pytest.raises(ValueError, match=r"no entry 'ema'.*teacher, epoch"):
        find_state_dict({"teacher": {"a": torch.ones(1)}, "epoch": 3}, key="ema")
    with pytest.raises(ValueError, match="not tensors in 'bare': net, epoch"):
        find_state_dict({"net": {"a": torch.ones(1)}, "epoch": 3})
    with pytest.raises(ValueError, match="'model' is not a filled dict"):
        find_state_dict({"model": {}})
