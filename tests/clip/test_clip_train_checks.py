"""Checks before a run: the activation rule over open_clip's whole table, files, towers, flags, data."""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import train_clip
from clip_train_options import build_parser
from clip_train_parts import run, sound, weights, write_config, write_csv, write_shard
from clip_train_run import build_without_memory, find_architecture, parse_run, read_pretrained

pytestmark = pytest.mark.usefixtures("training_folder")


def parsed(*words):
    return parse_run(*build_parser("").parse_known_args(list(words)))


def test_activation_of_every_tag_is_checked():
    refused = set()
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(arch)
        for forced in (False, True) if config is not None else ():
            wants = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False))
            if wants == (forced or bool(config.get("quick_gelu", False))):
                assert read_pretrained(arch, tag, forced) is None
                continue
            with pytest.raises(ValueError, match="leave out --force-quick-gelu" if forced else "GELU"):
                read_pretrained(arch, tag, forced)
            refused |= set() if forced else {(arch, tag)}
    for arch in ("ViT-B-16", "ViT-B-32", "ViT-L-14"):
        assert {(arch, tag) for tag in ("openai", "metaclip_400m", "metaclip_fullcc")} <= refused
    assert ("ViT-B-16", "laion400m_e32") not in refused
    assert not any(arch.startswith("EVA02") for arch, _ in refused)
    for tag, match in (
        ("openai", "use ViT-B-16-quickgelu"),
        ("opneai", r"nor weights .* ViT-B-16 \(openai, laion"),
    ):
        with pytest.raises(ValueError, match=match):
            read_pretrained("ViT-B-16", tag, False)


def test_activation_and_towers_of_files():
    """Also a state dict in OpenAI's own layout, which begins a run with QuickGELU and is refused without."""
    find_architecture("tiny_vit_clip.json")
    start = open_clip.create_model("tiny_vit_clip").state_dict()
    torch.save(start, "metaclip_tiny.pt")
    with pytest.raises(ValueError, match="metaclip in the file's name"):
        read_pretrained("tiny_vit_clip", "metaclip_tiny.pt", False)
    file = read_pretrained("tiny_vit_clip", "metaclip_tiny.pt", True)
    args = parsed("--model", "tiny_vit_clip.json", "--pretrained", "metaclip_tiny.pt", "--force-quick-gelu")
    assert build_without_memory(args, file).visual.grid_size == (4, 4)
    write_config("other_vit_clip.json", vision={"width": 48})
    with pytest.raises(ValueError, match="does not fit other_vit_clip"):
        build_without_memory(parsed("--model", "other_vit_clip.json"), file)
    extras = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
    torch.save(start | {name: torch.tensor(value) for name, value in extras.items()}, "weights.pt")
    write_config("quick_vit_clip.json", quick_gelu=True)
    write_csv(count=4)
    options = {"train_data": "data.csv", "pretrained": "weights.pt", "epochs": 1, "lr": 0}
    assert run(**options, model="quick_vit_clip.json") == 0
    assert torch.equal(weights("logs/run/checkpoints/epoch_1.pt")["visual.proj"], start["visual.proj"])
    assert run(**options, name="gelu") == 2
    assert not Path("logs/gelu").exists()


NAMED, DRAWN = ["--model", "tiny_vit_clip.json"], ["--dataset-type", "synthetic", "--train-num-samples"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--model", "RN50"], "ModifiedResNet has no adapter"),
        (["--model", "ViT-B-16-SigLIP"], "AttentionPoolLatent"),
        (["--model", "coca.json"], "AttentionalPooler"),
        ([*NAMED, "--torchscript"], "--torchscript cannot hold LaSt"),
        ([*NAMED, "--trace"], "--trace cannot hold LaSt"),
        ([*NAMED, "--pooling", "cls", "--top-k", "2"], "belong to --pooling last"),
        ([*NAMED, "--top-k", "17"], "top_k must be in [1, 16]"),
        ([*NAMED, "--top-k", "9", "--force-patch-dropout", "0.5"], "top_k must be in [1, 8]"),
        ([*NAMED, "--class-names", "x"], "belong to --dataset-type class-folder"),
        ([*NAMED, "--lock-text"], "--lock-text-freeze-layer-norm"),
        ([*NAMED, "--imagenet-val", "x"], "No such file or directory: 'x'"),
        ([*NAMED, "--imagenet-val", "val"], "holds 1 class folders"),
        (["--model", "ViT-B-32x"], "ViT-B-32"),
        (["--model", "missing.json"], "missing.json"),
        ([], "--model is needed"),
        (
            [*NAMED, "--train-data", "0.tar", "1.tar", "--workers", "0"],
            "the shell expanded the pattern: quote it",
        ),
        ([*NAMED, "--val-data=0.tar", "--val-data=1.tar"], "--val-data got several shards"),
        ([*NAMED, "--imagenet-val", "numbers"], "numbers holds 1000 class folders, and"),
        ([*NAMED, "--resume", "latest"], "--name"),
        ([*NAMED, "--resume", "missing.pt", *DRAWN, "64"], "no such file"),
        ([*NAMED], "no data"),
        ([*NAMED, "--train-data", "0.tar"], "--train-num-samples"),
        ([*NAMED, "--train-data", "0.tar", "--train-num-samples", "8", "--workers", "2"], "shards must be >= total"),
        ([*NAMED, "--train-data", "folder"], "failed for extension folder"),
        ([*NAMED, "--train-data", "data.csv", "--csv-caption-key", "x", "--batch-size", "1"], "no column 'x'"),
        ([*NAMED, "--dataset-type", "synthetic-captions"], "--train-num-samples"),
        ([*NAMED, *DRAWN, "3"], "less than one step"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(refused, words, match):
    write_shard("0.tar", {"0": sound(0)})
    write_csv(count=1)
    write_config("coca.json", vision={"attentional_pool": True})
    Path("val/n01440764").mkdir(parents=True)
    for label in range(1000 if "numbers" in words else 0):
        Path(f"numbers/{label}").mkdir(parents=True)
    assert match in refused(train_clip.main, *words)
    assert not Path("logs").exists()


def test_models_by_name_and_by_file():
    assert find_architecture("ViT-B/16") == "ViT-B-16"
    model = build_without_memory(parsed("--model", "clip_mini_8", "--top-k", "64"), None)
    assert (model.visual.grid_size, model.visual.image_size) == ((8, 8), (64, 64))
    # beta2 and eps follow the name alone, whatever folder a file lies in
    Path("vit").mkdir()
    shutil.copy(Path(train_clip.__file__).parent / "model_configs" / "clip_mini_8.json", "vit/mini.json")
    assert parsed("--model", "vit/mini.json").beta2 == 0.999
    assert parsed("--model", "ViT-B-16").beta2 == 0.98


def test_abbreviations_are_open_clips():
    options, rest = build_parser("").parse_known_args(["--mod", "x", "--top-k", "0.25"])
    assert (options.model, options.top_k, rest) == (None, 0.25, ["--mod", "x"])
