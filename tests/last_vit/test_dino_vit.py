"""DINO's ViT on timm: golden outputs at every input size, initial values, drop path, LaSt, specs and errors."""

import pytest
import torch
from checkpoint_parts import saved
from dino_parts import golden, tiny_vit

from last_vit.dense import attach_last
from last_vit.dino_vit import DINO_VITS, build_dino_vit
from last_vit.models import build_model, load_trained_model, parse_model_argument
from last_vit.preprocessing import trained_img_size


@pytest.fixture
def vit():
    model = tiny_vit().eval()
    model.load_state_dict(golden("dino_vit_state"))
    return model


@pytest.mark.parametrize("name", ["native", "rect", "small"])
def test_golden(vit, name):
    vectors = golden("dino_vit")
    with torch.no_grad():
        torch.testing.assert_close(vit(vectors[f"{name}_in"]), vectors[f"{name}_forward"], atol=1e-5, rtol=0)
        options = {"indices": 2, "norm": True, "intermediates_only": True, "return_prefix_tokens": True}
        layers = vit.forward_intermediates(vectors[f"{name}_in"], output_fmt="NLC", **options)
    for i, (patches, prefix) in enumerate(layers):
        tokens = torch.cat((prefix, patches), dim=1)
        torch.testing.assert_close(tokens, vectors[f"{name}_intermediate{i}"], atol=1e-5, rtol=0)


def test_keys_are_dinos():
    assert list(tiny_vit().state_dict()) == list(golden("dino_vit_state"))


def test_initial_values():
    torch.manual_seed(0)
    model = tiny_vit()
    for tensor in (model.pos_embed, model.cls_token, model.blocks[1].attn.qkv.weight, model.blocks[0].mlp.fc2.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.blocks[0].attn.qkv.bias.any()
    assert model.norm.eps == 1e-6
    assert model.patch_embed.proj.bias.any(), "the convolution keeps torch's own initial values"


def test_drop_path_rises_linearly_and_sleeps_in_eval():
    model = tiny_vit(drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_unknown_sizes_and_architectures(vit):
    for size in ((32, 20), (0, 8)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels.*multiples of the patch size 8"):
            vit(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="vit_mini, vit_tiny, vit_small, vit_base, got 'vit_huge'"):
        build_dino_vit("vit_huge", 16)
    with pytest.raises(ValueError, match="multiple of patch_size 16, got 100"):
        build_dino_vit("vit_tiny", 16, img_size=100)


def test_model_text_with_a_small_dino_checkpoint(tmp_path):
    """The position embedding's grid comes from the file, so that a model of small images needs no flag."""
    torch.manual_seed(1)
    trained = build_dino_vit("vit_mini", 8, img_size=32).eval()
    weights = {f"backbone.{name}": tensor for name, tensor in trained.state_dict().items()}
    weights["head.mlp.0.weight"] = torch.zeros(2, 192)
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in weights.items()}
    path = saved(tmp_path / "checkpoint.pth", {
        "student": student, "teacher": weights, "epoch": 1,
        "pooling": {"pool": "last", "top_k": 0.25, "variant": "paper"},
    })  # fmt: skip
    argument = parse_model_argument(f"LaSt=dino:vit_mini/8@{path}")
    loaded = argument.load()
    assert loaded.pooling == {"pool": "last", "top_k": 0.25, "variant": "paper", "sigma": None}
    assert (loaded.preprocessing.resize, loaded.preprocessing.crop) == (37, 32)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), attach_last(trained, 0.25, variant="paper")(images))
    assert trained_img_size(trained.state_dict()) == 32
    assert load_trained_model("dino:vit_mini/8", path, image_size=48, pool="cls").preprocessing.crop == 48


def test_released_backbone_loads_bare(tmp_path):
    trained = build_dino_vit("vit_mini", 16)
    path = saved(tmp_path / "dino_pretrain.pth", trained.state_dict())
    loaded = load_trained_model("dino:vit_mini/16", path)
    assert loaded.pooling == {"pool": "host"}
    assert torch.equal(loaded.model.pos_embed, trained.pos_embed)
    assert (loaded.model.embed_dim, len(loaded.model.blocks)) == DINO_VITS["vit_mini"][:2]
    found = loaded.preprocessing
    assert (found.resize, found.crop, found.interpolation) == (256, 224, "bicubic")
    with pytest.raises(ValueError, match="dino:vit_small/16"):
        build_model("dino:vit_tiny/x")
