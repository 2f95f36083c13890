"""`hf:<folder or name>`: weights, preprocessing and errors, on tiny models saved as Hugging Face saves them."""

import json
import sys

import pytest
import torch
import transformers as hf
from hub_parts import TRANSFORMERS, VIT
from safetensors.torch import load_file, save_file

from last_vit import hf_models
from last_vit.checkpoint import file_sha256, save_checkpoint
from last_vit.dense import dense_forward
from last_vit.models import build_model, load_trained_model, parse_model_argument
from last_vit.preprocessing import Preprocessing

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SQUASHED = {"size": {"height": 40, "width": 40}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}


@pytest.fixture
def folder(tmp_path):
    """ViTForImageClassification with five classes, and the preprocessing that it was trained with."""
    TRANSFORMERS["ViTForImageClassification"]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SQUASHED))
    return tmp_path


def test_a_folder_is_read_as_its_author_saved_it(folder):
    found = parse_model_argument(f"ours=hf:{folder},top_k=3,pool=last").load()
    host = hf.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(load_trained_model(f"hf:{folder}", None).model(IMAGES).logits, host(IMAGES).logits)
        tokens = host.vit(IMAGES).last_hidden_state[:, 1:]
        torch.testing.assert_close(dense_forward(found.model, IMAGES).patch_tokens, tokens)
    assert found.pooling == {"pool": "last", "top_k": 3, "variant": "release", "sigma": None}
    assert found.preprocessing == Preprocessing((0.5,) * 3, (0.2,) * 3, 40, 40, "bilinear")
    assert found.checkpoint_sha256 == file_sha256(folder / "model.safetensors")[:16]
    assert found.num_classes == 5
    assert load_trained_model(f"hf:{folder}", None, image_size=20, resize=22).preprocessing.resize == 22


def test_random_weights_and_fine_tuned_files_take_the_folders_class(folder, tmp_path):
    one, two = (load_trained_model(f"hf:{folder}", None, random_seed=seed).model.state_dict() for seed in (3, 3))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["classifier.weight"], load_file(folder / "model.safetensors")["classifier.weight"])
    save_checkpoint(tmp_path / "tuned.pth", {"model": one, "pooling": {"pool": "last", "top_k": 2}})
    tuned = load_trained_model(f"hf:{folder}", tmp_path / "tuned.pth")
    assert torch.equal(tuned.model.state_dict()["classifier.weight"], one["classifier.weight"])
    assert tuned.pooling["top_k"] == 2
    assert build_model(f"hf:{folder}").config.num_labels == 5


def test_a_name_is_fetched_without_code_and_pickles(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(hf_models, "snapshot_download", lambda name, **kwargs: asked.append((name, kwargs)) or folder)
    assert load_trained_model("hf:someone/some-vit", None).num_classes == 5
    assert {name for name, _ in asked} == {"someone/some-vit"}
    patterns = asked[0][1]["allow_patterns"]
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in patterns)


@pytest.mark.parametrize(
    ("build", "loaded"),
    [
        (lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**VIT, decoder_hidden_size=16)), "ViTMAEModel"),
        (lambda: hf.ViTModel(hf.ViTConfig(**VIT), add_pooling_layer=False), "ViTModel"),  # as facebook/dino-vits16
        (TRANSFORMERS["CLIPModel"], "CLIPModel"),
        (TRANSFORMERS["Dinov2WithRegistersModel"], "Dinov2WithRegistersModel"),
    ],
)
def test_encoders_load_in_shards_and_half_precision(tmp_path, build, loaded):
    build().half().save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found = load_trained_model(f"hf:{tmp_path}", None)
    assert type(found.model).__name__ == loaded
    assert getattr(found.model, "pooler", None) is None
    assert {weight.dtype for weight in found.model.parameters()} == {torch.float32}
    assert (found.num_classes, found.preprocessing.crop, found.preprocessing.resize) == (None, 32, 37)
    assert dense_forward(found.model, IMAGES).grid_hw == (4, 4)


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": 1}, (256, 224)),
        ({"size": 224, "crop_size": 224, "do_center_crop": False, "resample": 3}, (224, 224)),
        ({"size": {"height": 518, "width": 518}}, (518, 518)),
    ],
)
def test_preprocessing_of_the_published_forms(folder, config, sides):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    found = hf_models.hf_preprocessing(str(folder), None)
    assert (found.resize, found.crop) == sides
    assert found.interpolation == ("bicubic" if config.get("resample") == 3 else "bilinear")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"cannot read .*config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot read .*config.json"),
        (lambda f: edit(f / "config.json", architectures=["ViT9Model"]), r"transformers 5\S* has no class 'ViT9Model'"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no model.*safetensors.*can run code"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "do not load into ViTForImageClassification"),
        (lambda f: rewrite_weights(f, lambda w: w.pop("classifier.bias")), r"missing \['classifier.bias'\]"),
        (lambda f: rewrite_weights(f, lambda w: w.update(extra=torch.ones(1))), r"not used \['extra'\]"),
        (lambda f: edit(f / "config.json", hidden_size=32), "do not load into ViTForImageClassification"),
        (lambda f: edit(f / "preprocessor_config.json", size={"height": 3, "width": 4}), "must become squares"),
        (lambda f: (f / "preprocessor_config.json").write_text("[1]"), r"preprocessor_config.json holds no settings"),
        (lambda f: (f / "preprocessor_config.json").write_text("{"), r"preprocessor_config.json holds no settings"),
        (lambda f: edit(f / "preprocessor_config.json", resample=1), r"resample must be 2 .* or 3 .*, got 1"),
    ],
)
def test_folders_that_cannot_be_loaded(folder, spoil, message):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s)model 'A': .*{message}"):
        parse_model_argument(f"A=hf:{folder}").load()


def test_names_that_cannot_be_fetched_and_a_missing_library(folder, monkeypatch):
    def offline(name, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hf_models, "snapshot_download", offline)
    for name in ("someone/some-vit", "/no/such/folder"):
        with pytest.raises(ValueError, match=rf"{name}' is no folder.*no route to the hub.*hf:<folder>"):
            load_trained_model(f"hf:{name}", None)
    with pytest.raises(ValueError, match="several sets of weights"):
        load_trained_model(f"hf:{folder}", folder / "model.safetensors", random_seed=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        load_trained_model(f"hf:{folder}", None)
