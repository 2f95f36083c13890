"""Every layout of a CLIP file gives the weights that were written, and what does not fit is described."""

import open_clip
import pytest
import torch
from clip_files import EVA_VISION, TEXT, VISION, as_eva, config_file, random_clip, same
from clip_files import registry as registry
from clip_files import tiny_eva as tiny_eva

from last_vit.checkpoint import fit_names
from last_vit.clip_checkpoints import describe_clip, fitting_architectures
from last_vit.clip_dense import resize_positions
from last_vit.clip_models import load_clip
from last_vit.dense import dense_forward

pytestmark = pytest.mark.usefixtures("registry")


@pytest.mark.parametrize("scale_shape", [(), (1,)])
def test_open_clips_own_files(tmp_path, scale_shape):
    config = config_file(tmp_path)
    weights = random_clip(config, seed=3).state_dict()
    torch.save({**weights, "logit_scale": weights["logit_scale"].reshape(scale_shape)}, tmp_path / "epoch_3.pt")
    clip = load_clip(config, tmp_path / "epoch_3.pt")
    assert same(clip.model, weights)
    assert not clip.model.training
    assert clip.notes == ()
    assert len(clip.checkpoint_sha256) == 16


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
    """EVA02_CLIP_B_psz16_s8B.pt against EVA02-B-16, without memory for the weights."""
    with torch.device("meta"):
        own = open_clip.create_model("EVA02-B-16", device="meta").state_dict()
        eva = as_eva(own)
    fitted = fit_names(eva, own)
    assert {name: value.shape for name, value in fitted.items()} == {name: own[name].shape for name in own}
    described = {
        "image tower": "EVA", "image width": 768, "image blocks": 12, "patch": 16, "embedding": 512,
        "text tower": "transformer", "text width": 512, "text blocks": 12, "vocabulary": 49408,
    }  # fmt: skip
    assert describe_clip(eva) == describe_clip(own) == described
    assert fitting_architectures(described) == ["EVA02-B-16"]


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
    expected = resize_positions(source.visual.state_dict()[name], 1, (4, 4), (height, width), "open_clip")
    assert torch.equal(clip.model.visual.state_dict()[name], expected)
    official = open_clip.create_model(clip.arch, pretrained=str(tmp_path / "a.pt"), force_image_size=size)
    torch.testing.assert_close(clip.model.state_dict(), official.state_dict())


@pytest.mark.usefixtures("tiny_eva")
def test_another_grid_in_eva_names_and_another_context_length(tmp_path):
    config = config_file(tmp_path, vision=EVA_VISION, custom_text=True, text={**TEXT, "context_length": 12})
    weights = {**random_clip(config).state_dict(), "visual.trunk.pos_embed": torch.rand(1, 37, 24)}
    weights["text.positional_embedding"] = torch.rand(8, 16).half()
    torch.save(as_eva(weights), tmp_path / "a.pt")
    clip = load_clip(config, tmp_path / "a.pt")
    assert clip.notes == (
        "image position embedding resized from 6 x 6 to 4 x 4 patches",
        "text position embedding resized from 8 to 12 tokens",
    )
    assert clip.model.text.positional_embedding.shape == (12, 16)


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


def a_part(weights, is_image=True):
    return {name: value for name, value in weights.items() if name.startswith("visual.") is is_image}


def without_its_prefix(weights):
    return {name.removeprefix("visual."): value for name, value in a_part(weights).items()}


def one_less_one_more(weights):
    return {**{name: value for name, value in weights.items() if name != "visual.ln_pre.bias"}, "extra": torch.ones(1)}


@pytest.mark.usefixtures("tiny_eva")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        ("EVA", r"image tower EVA, .*; tiny has image tower ViT, "),
        (a_part, "has no text tower in"),
        (lambda weights: a_part(weights, is_image=False), "has no image tower in"),
        (without_its_prefix, "has no image tower and no text tower in .* perhaps it is an image tower alone"),
        (one_less_one_more, r"(?s)a\.pt: .*missing.*visual\.ln_pre\.bias.*unexpected.*extra"),
        (lambda _: {}, r"a\.pt: no weights"),
    ],
    ids=["EVA", "image", "text", "tower", "one less, one more", "empty"],
)
def test_what_is_not_a_whole_clip_of_this_kind(tmp_path, make, match):
    config = config_file(tmp_path)
    if make == "EVA":
        source = config_file(tmp_path, name="tiny_eva", vision=EVA_VISION, custom_text=True)
        weights = as_eva(random_clip(source).state_dict())
    else:
        weights = make(random_clip(config).state_dict())
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=match):
        load_clip(config, tmp_path / "a.pt")


def test_no_file():
    with pytest.raises(FileNotFoundError, match="never the name of one to download"):
        load_clip("ViT-B-16", "openai")
