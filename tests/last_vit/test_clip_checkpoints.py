"""Every layout of a CLIP file gives the weights that were written, and what does not fit is described."""

import open_clip
import pytest
import torch
from clip_files import EVA_VISION, TEXT, VISION, archive, as_eva, as_openai, config_file, random_clip, same
from clip_files import registry as registry
from clip_files import tiny_eva as tiny_eva
from safetensors.torch import save_file

from last_vit.checkpoint import fit_names
from last_vit.clip_checkpoints import describe_clip, fitting_architectures
from last_vit.clip_dense import resize_positions
from last_vit.clip_models import load_clip
from last_vit.dense import dense_forward

pytestmark = pytest.mark.usefixtures("registry")
no_jit_warning = pytest.mark.filterwarnings("ignore:.*torch.jit")


def write(path, layout, weights):
    if layout == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
        return path
    content = {
        "bare": weights,
        "bare behind DDP": {f"module.{name}": value for name, value in weights.items()},
        "training": {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{name}": value for name, value in weights.items()},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "scaler": {"scale": 65536.0},
        },
        "state_dict only": {"state_dict": weights},
    }[layout]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", ["bare", "bare behind DDP", "training", "state_dict only", "safetensors"])
def test_open_clips_own_layouts(tmp_path, layout):
    config = config_file(tmp_path)
    source = random_clip(config, seed=3)
    clip = load_clip(config, write(tmp_path / "epoch_3.pt", layout, source.state_dict()))
    assert same(clip.model, source.state_dict())
    assert not clip.model.training
    assert clip.notes == ()
    assert len(clip.checkpoint_sha256) == 16


@no_jit_warning
@pytest.mark.parametrize("layout", ["archive", "plain"])
def test_openais_layouts(tmp_path, layout):
    config = config_file(tmp_path, quick_gelu=True)
    weights = as_openai(random_clip(config, seed=4).state_dict())
    path = tmp_path / "weights.pt"
    archive(path, weights) if layout == "archive" else torch.save(weights, path)
    clip = load_clip(config, path)
    kept = {name: value for name, value in weights.items() if value.is_floating_point()}
    assert len(kept) == len(weights) - 3
    assert same(clip.model, kept)
    assert clip.model.visual.conv1.weight.dtype == torch.float32


@pytest.mark.usefixtures("tiny_eva")
@pytest.mark.parametrize("layout", ["EVA's own", "open_clip's"])
def test_eva(tmp_path, layout):
    config = config_file(tmp_path, vision=EVA_VISION, custom_text=True)
    source = random_clip(config, seed=5)
    torch.save(as_eva(source.state_dict()) if layout == "EVA's own" else source.state_dict(), tmp_path / "eva.pt")
    clip = load_clip(config, tmp_path / "eva.pt")
    assert same(clip.model, source.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(dense_forward(clip.model, images).logits, source.encode_image(images))


def test_eva_names_and_shapes_of_the_real_size():
    """Key for key: the image tower of EVA02_CLIP_B_psz16_s8B.pt as EVA's code names it, against EVA02-B-16."""
    with torch.device("meta"):
        own = open_clip.create_model("EVA02-B-16", device="meta").state_dict()
        shapes = {"cls_token": [1, 1, 768], "pos_embed": [1, 197, 768], "patch_embed.proj.weight": [768, 3, 16, 16]}
        shapes |= {"patch_embed.proj.bias": [768], "norm.weight": [768], "norm.bias": [768]}
        shapes |= {"head.weight": [512, 768], "head.bias": [512]}
        shapes |= {"rope.freqs_cos": [196, 64], "rope.freqs_sin": [196, 64]}
        for at in (f"blocks.{block}" for block in range(12)):
            for layer in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"):
                shapes[f"{at}.{layer}.weight"] = [768, 768]
            shapes |= {f"{at}.attn.q_bias": [768], f"{at}.attn.v_bias": [768], f"{at}.attn.proj.bias": [768]}
            shapes |= {f"{at}.attn.rope.freqs_cos": [196, 64], f"{at}.attn.rope.freqs_sin": [196, 64]}
            for layer, size in (("norm1", 768), ("norm2", 768), ("attn.inner_attn_ln", 768), ("mlp.ffn_ln", 2048)):
                shapes |= {f"{at}.{layer}.weight": [size], f"{at}.{layer}.bias": [size]}
            for layer, rows, columns in (("w1", 2048, 768), ("w2", 2048, 768), ("w3", 768, 2048)):
                shapes |= {f"{at}.mlp.{layer}.weight": [rows, columns], f"{at}.mlp.{layer}.bias": [rows]}
        eva = {f"visual.{name}": torch.empty(shape) for name, shape in shapes.items()}
        eva |= {name: value for name, value in own.items() if not name.startswith("visual.")}  # no name differs
    assert {name for name in as_eva(own) if "rope" not in name} == {name for name in eva if "rope" not in name}
    fitted = fit_names(eva, own)
    assert fitted.keys() == own.keys()
    assert all(fitted[name].shape == own[name].shape for name in own)
    described = {
        "image tower": "EVA", "image width": 768, "image blocks": 12, "patch": 16, "embedding": 512,
        "text tower": "transformer", "text width": 512, "text blocks": 12, "vocabulary": 49408,
    }  # fmt: skip
    assert describe_clip(eva) == describe_clip(own) == described
    assert fitting_architectures(described) == ["EVA02-B-16"]


@pytest.mark.parametrize(
    ("arch", "width", "patch"), [("ViT-B-16-quickgelu", 768, 16), ("ViT-L-14-quickgelu", 1024, 14)]
)
def test_openai_names_and_shapes_of_the_real_size(arch, width, patch):
    """Key for key: OpenAI's ViT-B/16 and L/14 as its code names them, against open_clip's models."""
    with torch.device("meta"):
        own = open_clip.create_model(arch, device="meta").state_dict()
        attributes = {name: torch.empty(()) for name in ("input_resolution", "context_length", "vocab_size")}
    blocks, text_width = (12, 512) if width == 768 else (24, 768)
    expected = {"logit_scale": [], "text_projection": [text_width, text_width], "visual.proj": [width, text_width]}
    expected |= {"positional_embedding": [77, text_width], "token_embedding.weight": [49408, text_width]}
    expected |= {"visual.class_embedding": [width], "visual.conv1.weight": [width, 3, patch, patch]}
    expected["visual.positional_embedding"] = [(224 // patch) ** 2 + 1, width]
    for name, size in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text_width)):
        expected |= {f"{name}.weight": [size], f"{name}.bias": [size]}
    for tower, size, count in (("visual.transformer", width, blocks), ("transformer", text_width, 12)):
        for block in range(count):
            at = f"{tower}.resblocks.{block}"
            expected |= {f"{at}.attn.in_proj_weight": [3 * size, size], f"{at}.attn.in_proj_bias": [3 * size]}
            for layer, rows, columns in (
                ("attn.out_proj", size, size), ("mlp.c_fc", 4 * size, size), ("mlp.c_proj", size, 4 * size),
            ):  # fmt: skip
                expected |= {f"{at}.{layer}.weight": [rows, columns], f"{at}.{layer}.bias": [rows]}
            for layer in ("ln_1", "ln_2"):
                expected |= {f"{at}.{layer}.weight": [size], f"{at}.{layer}.bias": [size]}
    assert {name: list(value.shape) for name, value in fit_names({**own, **attributes}, own).items()} == expected
    assert arch in fitting_architectures(describe_clip(own))


def test_scale_as_one_number_or_as_a_list_of_one(tmp_path):
    config = config_file(tmp_path)
    weights = random_clip(config).state_dict()
    torch.save({**weights, "logit_scale": weights["logit_scale"].reshape(1)}, tmp_path / "a.pt")
    assert same(load_clip(config, tmp_path / "a.pt").model, weights)


def test_text_tower_with_and_without_its_own_prefix(tmp_path):
    weights = random_clip(config_file(tmp_path)).state_dict()
    torch.save(weights, tmp_path / "a.pt")
    clip = load_clip(config_file(tmp_path, name="custom", custom_text=True), tmp_path / "a.pt")
    assert torch.equal(clip.model.text.token_embedding.weight, weights["token_embedding.weight"])
    assert torch.equal(clip.model.visual.proj, weights["visual.proj"])


@pytest.mark.usefixtures("tiny_eva")
@pytest.mark.parametrize("vision", [VISION, EVA_VISION], ids=["native", "EVA"])
@pytest.mark.parametrize("size", [64, (24, 48)])
def test_another_grid(tmp_path, vision, size):
    config = config_file(tmp_path, vision=vision, custom_text=vision is EVA_VISION)
    source = random_clip(config, seed=6)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    clip = load_clip(config, tmp_path / "a.pt", image_size=size)
    height, width = (8, 8) if size == 64 else (3, 6)
    assert clip.notes == (f"image position embedding resized from 4 x 4 to {height} x {width} patches",)
    name = "positional_embedding" if vision is VISION else "trunk.pos_embed"
    original = source.visual.state_dict()[name]
    expected = resize_positions(original, 1, (4, 4), (height, width), "open_clip")
    assert torch.equal(clip.model.visual.state_dict()[name], expected)
    official = open_clip.create_model(clip.arch, pretrained=str(tmp_path / "a.pt"), force_image_size=size)
    torch.testing.assert_close(clip.model.state_dict(), official.state_dict())
    images = torch.rand(1, 3, 8 * height, 8 * width)
    torch.testing.assert_close(clip.model.encode_image(images), official.eval().encode_image(images))


@pytest.mark.usefixtures("tiny_eva")
def test_eva_file_of_another_grid(tmp_path):
    """Trained at 48 x 48 pixels, loaded into the 32 x 32 of its architecture."""
    config = config_file(tmp_path, vision=EVA_VISION, custom_text=True)
    source = random_clip(config)
    large = {**source.state_dict(), "visual.trunk.pos_embed": torch.rand(1, 37, 24)}
    torch.save(as_eva(large), tmp_path / "a.pt")
    clip = load_clip(config, tmp_path / "a.pt")
    assert clip.notes == ("image position embedding resized from 6 x 6 to 4 x 4 patches",)


def test_another_context_length(tmp_path):
    weights = random_clip(config_file(tmp_path)).state_dict()
    torch.save({name: value.half() for name, value in weights.items()}, tmp_path / "a.pt")
    config = config_file(tmp_path, name="long", text={**TEXT, "context_length": 12})
    clip = load_clip(config, tmp_path / "a.pt")
    assert clip.notes == ("text position embedding resized from 8 to 12 tokens",)
    assert clip.model.positional_embedding.shape == (12, 16)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vision": {**VISION, "width": 36}}, r"image width 36.*tiny has .*image width 24"),
        ({"vision": {**VISION, "layers": 3}}, r"image blocks 3.*tiny has .*image blocks 2"),
        ({"vision": {**VISION, "patch_size": 4}}, r"patch 4.*tiny has .*patch 8"),
        ({"text": {**TEXT, "width": 32}}, r"text width 32.*tiny has .*text width 16"),
        ({"text": {**TEXT, "layers": 1}}, r"text blocks 1.*tiny has .*text blocks 2"),
        ({"text": {**TEXT, "vocab_size": 65}}, r"vocabulary 65.*tiny has .*vocabulary 64"),
        ({"embed_dim": 16}, r"embedding 16.*tiny has .*embedding 12"),
    ],
    ids=["width", "depth", "patch", "text width", "text depth", "vocabulary", "embedding"],
)
def test_another_tower(tmp_path, changes, match):
    torch.save(random_clip(config_file(tmp_path, name="other", **changes)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt does not fit tiny.*{match}.*like the file: .*other"):
        load_clip(config_file(tmp_path), tmp_path / "a.pt")


@pytest.mark.usefixtures("tiny_eva")
def test_another_kind_of_tower(tmp_path):
    eva = random_clip(config_file(tmp_path, name="tiny_eva", vision=EVA_VISION, custom_text=True))
    torch.save(as_eva(eva.state_dict()), tmp_path / "eva.pt")
    with pytest.raises(ValueError, match=r"image tower EVA, .*; tiny has image tower ViT, "):
        load_clip(config_file(tmp_path), tmp_path / "eva.pt")
    torch.save(random_clip(config_file(tmp_path)).state_dict(), tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=r"image tower ViT, .*; tiny_eva has image tower EVA, "):
        load_clip(str(tmp_path / "tiny_eva.json"), tmp_path / "vit.pt")


def test_half_a_clip(tmp_path):
    config = config_file(tmp_path)
    source = random_clip(config)
    image = {name: value for name, value in source.state_dict().items() if name.startswith("visual.")}
    for weights, match in (
        (image, "has no text tower in"),
        (source.visual.state_dict(), "has no image tower and no text tower in .* perhaps it is an image tower alone"),
        ({n: v for n, v in source.state_dict().items() if n not in image}, "has no image tower in"),
    ):
        torch.save(weights, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=match):
            load_clip(config, tmp_path / "a.pt")


def test_a_missing_weight_and_one_too_many(tmp_path):
    config = config_file(tmp_path)
    weights = random_clip(config).state_dict()
    del weights["visual.ln_pre.bias"]
    torch.save({**weights, "extra": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"(?s)a\.pt: .*missing.*visual\.ln_pre\.bias.*unexpected.*extra"):
        load_clip(config, tmp_path / "a.pt")


def test_broken_files(tmp_path):
    config = config_file(tmp_path)
    path = tmp_path / "a.pt"
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"a\.pt: no weights"):
        load_clip(config, path)
    with pytest.raises(FileNotFoundError, match="never the name of one to download"):
        load_clip(config, "openai")
