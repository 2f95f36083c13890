"""Specs: each form builds the host's own model, tells its preprocessing, and fails with a way out."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from last_vit.lazy_config import apply_overrides
from last_vit.models import build_model, load_trained_model, preprocessing_of
from last_vit.preprocessing import Preprocessing

CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn
from torchvision.models import VisionTransformer
model = L(VisionTransformer)(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
train = dict(lr=0.1, steps=[1, 2])
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    pytest.importorskip("detectron2")
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def test_torchvision():
    model = build_model("torchvision:vit_b_32", num_classes=7, image_size=64)
    assert not model.training
    assert (model.image_size, model.heads.head.out_features) == (64, 7)
    assert preprocessing_of("torchvision:vit_b_32", model) == Preprocessing()
    assert preprocessing_of("torchvision:vit_b_32", model, image_size=64).resize == 73
    assert build_model("torchvision:squeezenet1_1", num_classes=3, image_size=64).num_classes == 3


def test_timm():
    model = build_model("timm:test_vit", num_classes=5, image_size=64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    found = preprocessing_of("timm:test_vit", model, image_size=64, resize=64)
    assert found == Preprocessing((0.5,) * 3, (0.5,) * 3, 64, 64, "bicubic")
    assert build_model("timm:test_resnet", num_classes=0, image_size=64).num_classes == 0


def test_open_clip_file_is_loaded(tmp_path, monkeypatch):
    model = build_model("open_clip:ViT-S-32-alt", image_size=64)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = load_trained_model(f"open_clip:ViT-S-32-alt/{tmp_path}/weights.pt", None, image_size=64).model
    assert again.logit_scale.item() == 1.5
    found = preprocessing_of("open_clip:ViT-S-32-alt", again)
    assert (found.resize, found.crop, found.interpolation) == (64, 64, "bicubic")
    assert found.mean[0] == pytest.approx(0.4815, abs=1e-4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="local file"):
        load_trained_model("open_clip:ViT-S-32-alt/openai", None)
    # a file of that name is the file, not open_clip's tag
    (tmp_path / "weights.pt").rename("openai.pt")
    with pytest.raises(ValueError, match=r"QuickGELU.*openai in the file's name"):
        load_trained_model("open_clip:ViT-S-32-alt/openai.pt", None, image_size=64)


def test_config(config):
    assert build_model(config)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    model = build_model(config, opts=["model.hidden_dim=32", "model.num_classes=4"])  # num_classes: a parameter
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert preprocessing_of(config, model, image_size=32, resize=36) == Preprocessing(resize=36, crop=32)


def test_config_transform_is_used(config):
    Path(config).write_text(CONFIG + "dataloader = dict(test=dict(dataset=dict(transform=L(nn.Identity)())))\n")
    with pytest.raises(ValueError, match="EvalTransform"):
        preprocessing_of(config, build_model(config))
    transforms = pytest.importorskip("last_vit.data.transforms")
    call = "L(EvalTransform)(resize=72, crop=64, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))"
    Path(config).write_text(
        f"from {transforms.__name__} import EvalTransform\n{CONFIG}"
        f"dataloader = dict(test=dict(dataset=dict(transform={call})))\n"
    )
    expected = Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 72, 64, "bilinear")
    assert preprocessing_of(config, build_model(config)) == expected


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("model.hiden_dim=1", "did you mean model.hidden_dim"),
        ("modle.hidden_dim=1", "did you mean model"),
        ("train.steps.2=1", "train.steps has 0, 1"),
        ("train.lr.x=1", "train.lr has no keys"),
        ("model.hidden_dim", "key=value"),
        ("train.lr=[1", "cannot apply"),
        ("train.lr=null", "train.lr must be of type float"),
        ("model.hidden_dim=null", "model.hidden_dim must be of type int"),
    ],
)
def test_bad_overrides(config, override, match):
    with pytest.raises(ValueError, match=match):
        build_model(config, opts=[override])


def test_good_overrides(config):
    from detectron2.config import LazyConfig

    cfg = apply_overrides(LazyConfig.load(config), ["train.lr=0.5", "train.steps.1=7", "model.dropout=0.1"])
    assert (cfg.train.lr, cfg.train.steps[1], cfg.model.dropout) == (0.5, 7, 0.1)


def test_null_where_the_call_takes_none(config):
    """`num_workers` of torch's DataLoader is a number, its `sampler` None unless something is given."""
    from detectron2.config import LazyCall, LazyConfig

    cfg = LazyConfig.load(config)
    cfg.loader = LazyCall(DataLoader)(dataset=[1, 2], num_workers=0, sampler="${train.lr}")
    assert apply_overrides(cfg, ["loader.sampler=null"]).loader.sampler is None
    with pytest.raises(ValueError, match="must be of type int"):
        apply_overrides(cfg, ["loader.num_workers=null"])


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("vit_b_16", ValueError, "timm:<name>"),
        ("keras:vit", ValueError, "timm:<name>"),
        ("timm:", ValueError, "timm:<name>"),
        ("torchvision:vit_b16", ValueError, "vit_b_16"),
        ("timm:vit_smal_patch16_224", ValueError, "vit_small_patch16_224"),
        ("open_clip:ViT-B16", ValueError, "ViT-B-16"),
        ("nowhere/conf.py", FileNotFoundError, "no config file"),
    ],
)
def test_unknown_specs(spec, error, match):
    with pytest.raises(error, match=match):
        build_model(spec)


def test_config_without_model(config):
    Path(config).write_text("train = dict(lr=0.1)\n")
    with pytest.raises(ValueError, match="no 'model'; it defines train"):
        build_model(config)


def test_overrides_need_a_config():
    with pytest.raises(ValueError, match=r"for a <config>\.py"):
        build_model("timm:test_vit", opts=["a=1"])
