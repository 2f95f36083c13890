"""Checks before a run: the activation rule over open_clip's whole table, files, towers, flags, data."""

import argparse
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import train_clip
from clip_train_checks import check_imagenet, check_model, read_pretrained
from clip_train_options import parse_options
from clip_train_parts import arguments, write_config, write_csv
from clip_train_run import find_architecture, parse_run

QUICK = ("openai", "metaclip_400m", "metaclip_fullcc", "dfn2b", "dfn5b")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))


def parsed(*words):
    options, rest = parse_options("", list(words))
    return parse_run(options, rest)


def refuses(words, match, capsys):
    assert train_clip.main(words) == 2
    assert match in capsys.readouterr().err
    assert not Path("logs").exists()


def test_activation_of_every_tag_is_checked():
    refused = set()
    for arch, tag in open_clip.list_pretrained():
        if open_clip.get_model_config(arch) is None:
            continue
        for forced in (False, True):
            wants = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False))
            has = forced or bool(open_clip.get_model_config(arch).get("quick_gelu", False))
            if wants == has:
                assert read_pretrained(arch, tag, forced) is None
                continue
            with pytest.raises(ValueError, match="leave out --force-quick-gelu" if forced else "GELU"):
                read_pretrained(arch, tag, forced)
            if not forced:
                refused.add((arch, tag))
    for arch in ("ViT-B-16", "ViT-B-32", "ViT-L-14"):
        assert {(arch, tag) for tag in QUICK[:3]} <= refused
    assert ("ViT-B-16", "laion400m_e32") not in refused
    assert not any(arch.startswith("EVA02") for arch, _ in refused)


def test_the_way_out_of_a_wrong_activation_is_named():
    with pytest.raises(ValueError, match="use ViT-B-16-quickgelu"):
        read_pretrained("ViT-B-16", "openai", False)
    with pytest.raises(ValueError, match=r"nor weights that open_clip has for ViT-B-16 \(openai, laion400m_e31"):
        read_pretrained("ViT-B-16", "opneai", False)
    assert read_pretrained("ViT-B-16", "openai", True) is None  # forced, and right


def test_activation_of_files(tmp_path):
    write_config()
    find_architecture("tiny_vit_clip.json")
    weights = open_clip.create_model("tiny_vit_clip").state_dict()
    torch.save(weights, "metaclip_tiny.pt")
    with pytest.raises(ValueError, match="metaclip in the file's name"):
        read_pretrained("tiny_vit_clip", "metaclip_tiny.pt", False)
    file = read_pretrained("tiny_vit_clip", "metaclip_tiny.pt", True)
    args = parsed("--model", "tiny_vit_clip.json", "--pretrained", "metaclip_tiny.pt", "--force-quick-gelu")
    assert check_model(args, file).num_patches == 16
    write_config("other_vit_clip.json", vision={"width": 48})
    with pytest.raises(ValueError, match="does not fit other_vit_clip"):
        check_model(parsed("--model", "other_vit_clip.json"), file)


def test_openai_weights_as_the_trainer_reads_them(monkeypatch):
    """A state dict in OpenAI's own layout begins a run with QuickGELU, and is refused without."""
    write_config(quick_gelu=True)
    find_architecture("tiny_vit_clip.json")
    weights = open_clip.create_model("tiny_vit_clip").state_dict()
    extras = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
    torch.save(weights | {name: torch.tensor(value) for name, value in extras.items()}, "weights.pt")
    write_csv(count=4)
    options = {"train_data": "data.csv", "pretrained": "weights.pt", "epochs": 1, "lr": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_clip.main(arguments(**options)) == 0
    trained = torch.load("logs/run/checkpoints/epoch_1.pt", weights_only=True)["state_dict"]
    assert torch.equal(trained["visual.proj"], weights["visual.proj"])
    write_config("gelu_vit_clip.json")
    assert train_clip.main(arguments(**options, model="gelu_vit_clip.json", name="gelu")) == 2
    assert not Path("logs/gelu").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--model", "RN50"], "ModifiedResNet has no adapter"),
        (["--model", "ViT-B-16-SigLIP"], "AttentionPoolLatent"),
        (["--model", "coca_ViT-B-32"], "AttentionalPooler"),
        (["--model", "ViT-B-16", "--torchscript"], "--torchscript cannot hold LaSt"),
        (["--model", "ViT-B-16", "--trace"], "--trace cannot hold LaSt"),
        (["--model", "ViT-B-16", "--pooling", "cls", "--top-k", "2"], "belong to --pooling last"),
        (["--model", "ViT-B-32", "--top-k", "50"], "top_k must be in [1, 49]"),
        (["--model", "ViT-B-32", "--top-k", "30", "--force-patch-dropout", "0.5"], "top_k must be in [1, 24]"),
        (["--model", "ViT-B-32", "--class-names", "x"], "belong to --dataset-type class-folder"),
        (["--model", "ViT-B-32", "--lock-text"], "--lock-text-freeze-layer-norm"),
        (["--model", "ViT-B-32", "--resume", "missing.pt", "--imagenet-val", "x"], "is no folder"),
        (["--model", "ViT-B-32x"], "ViT-B-32"),
        (["--model", "missing.json"], "missing.json"),
        ([], "--model is needed"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(capsys, words, match):
    refuses(words, match, capsys)


def test_models_by_name_and_by_file():
    assert find_architecture("ViT-B/16") == "ViT-B-16"
    assert find_architecture("clip_mini_8") == "clip_mini_8"
    facts = check_model(parsed("--model", "clip_mini_8", "--top-k", "64"), None)
    assert facts.num_patches == 64
    assert facts.image_hw == (64, 64)
    assert 2.5e6 < facts.num_image_parameters < 3.5e6
    assert facts.num_parameters == sum(p.numel() for p in open_clip.create_model("clip_mini_8").parameters())
    # beta2 and eps follow the name alone, whatever folder a file lies in
    Path("vit").mkdir()
    shutil.copy(Path(train_clip.__file__).parent / "model_configs" / "clip_mini_8.json", "vit/mini.json")
    assert parsed("--model", "vit/mini.json").beta2 == 0.999
    assert parsed("--model", "ViT-B-16").beta2 == 0.98


def test_large_tower_of_the_paper_is_taken():
    facts = check_model(parsed("--model", "ViT-L-14-336-quickgelu"), None)
    assert facts.num_patches == 24**2
    assert facts.image_hw == (336, 336)


def test_imagenet_folder_must_have_its_1000_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match="1000 class folders"):
        check_imagenet(str(tmp_path / "none"))
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 class folders"):
        check_imagenet(str(tmp_path / "val"))


def test_options_leave_open_clips_flags_alone():
    options, rest = parse_options("", ["--mod", "x", "--train-data", "a.tar", "--lr", "1e-3", "--top-k", "0.25"])
    assert isinstance(options, argparse.Namespace)
    assert options.model is None  # an abbreviation of ours could be one of theirs
    assert options.top_k == 0.25
    assert rest == ["--mod", "x", "--train-data", "a.tar", "--lr", "1e-3"]
