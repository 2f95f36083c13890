"""CLIPs by name: architectures, pooling that a checkpoint was trained with, random weights and specs."""

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from clip_files import config_file, random_clip
from clip_files import registry as registry

from last_vit.clip_checkpoints import RECORD_FILE
from last_vit.clip_models import load_clip, resolve_architecture, split_clip_spec
from last_vit.dense import pooling_of
from last_vit.models import load_trained_model, parse_model_argument

pytestmark = pytest.mark.usefixtures("registry")


def checkpoint(folder, config, **record):
    torch.save({"state_dict": random_clip(config, seed=1).state_dict()}, folder / "epoch_1.pt")
    if record:
        content = {"top_k": None, "variant": None, "model": Path(config).stem, "force_quick_gelu": False, **record}
        (folder / RECORD_FILE).write_text(json.dumps(content))
    return folder / "epoch_1.pt"


def test_architectures(tmp_path):
    assert resolve_architecture("ViT-B-16-quickgelu") == "ViT-B-16-quickgelu"
    path = config_file(tmp_path, "my_clip")
    assert resolve_architecture(path) == "my_clip"
    assert resolve_architecture(Path(path)) == "my_clip"  # again, and as a path
    assert resolve_architecture("my_clip") == "my_clip"
    assert "my_clip" in open_clip.list_models()


def test_bad_architectures(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"embed_dim": 3}')
    for name, match in (
        ("ViT-B16", r"unknown open_clip architecture 'ViT-B16'; close ones: .*ViT-B-16"),
        ("###", r"'###'; there are \d+, for example"),
        (str(tmp_path / "a.json"), "no JSON file"),
        (str(tmp_path / "b.json"), "needs embed_dim, vision_cfg, text_cfg"),
        (config_file(tmp_path, "ViT-B-16"), r"hide another model config called 'ViT-B-16'; rename"),
    ):
        with pytest.raises(ValueError, match=match):
            resolve_architecture(name)
    with pytest.raises(FileNotFoundError, match="no open_clip model config"):
        resolve_architecture(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ViT-B-16", ("ViT-B-16", "")),
        ("ViT-B-16/a/b.pt", ("ViT-B-16", "a/b.pt")),
        ("ViT-B-16//a@b/c.pt", ("ViT-B-16", "/a@b/c.pt")),
        ("ViT-B-16/a.json/b.pt", ("ViT-B-16", "a.json/b.pt")),
        ("/a/mini.json", ("/a/mini.json", "")),
        ("a/mini.json//b/c.pt", ("a/mini.json", "/b/c.pt")),
        ("nothing/b.pt", ("nothing", "b.pt")),
        ("ViT-B-16@/a@b/c.pt", ("ViT-B-16", "/a@b/c.pt")),
        ("a/mini.json@b.pt", ("a/mini.json", "b.pt")),
    ],
)
def test_specs_are_split(text, parts):
    assert split_clip_spec(text) == parts


def test_recorded_pooling(tmp_path):
    config = config_file(tmp_path)
    path = checkpoint(tmp_path, config, pool="last", top_k=0.5, variant="paper")
    clip = load_clip(config, path)
    assert clip.pooling == {"pool": "last", "top_k": 0.5, "variant": "paper", "sigma": None} == pooling_of(clip.model)
    assert clip.pooling_source == "recorded in last_vit.json beside the checkpoint"
    assert load_clip(config, path, pool="last", top_k=3).pooling["variant"] == "paper"
    asked = load_clip(config, path, pool="cls")
    assert (asked.pooling["pool"], asked.pooling_source) == ("cls", "asked for")
    (tmp_path / RECORD_FILE).unlink()
    bare = load_clip(config, path)
    assert bare.pooling == {"pool": "host"}
    assert bare.pooling_source == "the host's own read-out; the checkpoint records none"
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(asked.model.encode_image(images), bare.model.encode_image(images))
    assert not torch.allclose(clip.model.encode_image(images), bare.model.encode_image(images))


def test_recorded_without_last(tmp_path):
    config = config_file(tmp_path)
    clip = load_clip(config, checkpoint(tmp_path, config, pool="host"))
    assert clip.pooling == {"pool": "host"}
    assert clip.pooling_source == "the host's own read-out, recorded in last_vit.json beside the checkpoint"
    path = checkpoint(tmp_path, config, pool="mean")
    assert load_clip(config, path).pooling["pool"] == "mean"
    with pytest.raises(ValueError, match="top_k and variant are for pool 'last'"):
        load_clip(config, path, top_k=2)
    for content in ("{", "[]", "{}", '{"model": "tiny", "pool": "last"}', '{"model": "tiny", "pool": "gem"}'):
        (tmp_path / RECORD_FILE).write_text(content)
        with pytest.raises(ValueError, match=r"last_vit\.json is no record of a CLIP training.*[Rr]e(store|move)"):
            load_clip(config, path)


def test_the_released_file_is_known_by_its_name(tmp_path):
    config = config_file(tmp_path, quick_gelu=True)
    torch.save(random_clip(config).state_dict(), tmp_path / "openai_b_16.pt")
    clip = load_clip(config, tmp_path / "openai_b_16.pt")
    assert clip.pooling == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}
    assert "K is not published" in clip.pooling_source
    with pytest.raises(ValueError, match="QuickGELU"):
        load_clip(config_file(tmp_path, "gelu"), tmp_path / "openai_b_16.pt")


def test_random_weights(tmp_path, caplog):
    config = config_file(tmp_path)
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.INFO):
        first, again, other = (load_clip(config, None, random_seed=seed) for seed in (1, 1, 2))
    assert not caplog.records
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.model.visual.proj, again.model.visual.proj)
    assert not torch.equal(first.model.visual.proj, other.model.visual.proj)
    assert first.checkpoint_sha256 is None
    assert load_clip(config, None, random_seed=0, pool="last", top_k=2).pooling["top_k"] == 2
    for path, seed in ((None, None), (checkpoint(tmp_path, config), 1)):
        with pytest.raises(ValueError, match="either a checkpoint or a random_seed"):
            load_clip(config, path, random_seed=seed)


def test_precision_and_what_comes_with_a_model(tmp_path):
    config = config_file(tmp_path)
    clip = load_clip(config, checkpoint(tmp_path, config), precision="bf16")
    found = clip.preprocessing
    assert (found.resize, found.crop, found.interpolation, round(found.mean[0], 3)) == (32, 32, "bicubic", 0.481)
    assert clip.tokenizer(["a dog"]).shape == (1, 8)
    assert clip.model.visual.conv1.weight.dtype == torch.bfloat16
    assert clip.model.visual.ln_pre.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"precision must be one of fp32, fp16, .*got 'int8'"):
        load_clip(config, tmp_path / "epoch_1.pt", precision="int8")


def test_specs_take_a_config_and_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint(tmp_path, config_file(tmp_path), pool="last", top_k=2, variant="release")
    direct = load_clip("tiny", path)
    images = torch.rand(2, 3, 32, 32)
    for text in ("open_clip:tiny.json@epoch_1.pt", f"open_clip:tiny.json/{path}", "open_clip:tiny@epoch_1.pt"):
        trained = parse_model_argument(text).load()
        assert trained.pooling == direct.pooling
        assert trained.checkpoint_sha256 == direct.checkpoint_sha256
        assert trained.preprocessing == direct.preprocessing
        assert torch.equal(trained.model.encode_image(images), direct.model.encode_image(images))
    control = parse_model_argument("open_clip:tiny.json@random,seed=3").load(image_size=64, resize=70)
    assert (control.preprocessing.resize, control.preprocessing.crop) == (70, 64)
    assert control.model.visual.image_size == (64, 64)
    with pytest.raises(ValueError, match="several sets of weights"):
        load_trained_model("open_clip:tiny.json/epoch_1.pt", "epoch_1.pt")
    with pytest.raises(ValueError, match=r"model '.*': .*epoch_1\.pt does not fit ViT-S-32-alt"):
        parse_model_argument("open_clip:ViT-S-32-alt@epoch_1.pt").load()
