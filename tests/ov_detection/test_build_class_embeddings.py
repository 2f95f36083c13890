"""ov_detection/build_class_embeddings.py: from a tower, from others' files, and its errors."""

import sys

import numpy as np
import pytest
import torch
from build_class_embeddings import main
from class_embeddings import embed_class_names, load_class_embeddings
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from ov_parts import coco_categories, write_json

NAMES = ["cat", "traffic_cone", "apple"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "x.json", {"images": [], "annotations": [], "categories": coco_categories(NAMES)})
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return tmp_path


def fails(capsys, *arguments):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--output", "out.safetensors"])
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "source", [["--json", "x.json"], ["--names", "names.txt"], ["--vocabulary", "cat, traffic_cone,apple"]]
)
def test_from_a_tower(folder, source, capsys):
    config, checkpoint = write_clip(folder)
    command = [
        "--model",
        str(config),
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--output",
        "out.safetensors",
    ]
    main([*command, *source])
    found = load_class_embeddings("out.safetensors")
    expected = embed_class_names(tiny_clip(), tiny_tokenizer(), NAMES, "")
    assert found.names == tuple(NAMES)
    torch.testing.assert_close(found.embeddings, expected.embeddings)
    torch.testing.assert_close(found.background, expected.background)
    assert found.tower.startswith("clip_tiny, weights ")
    assert found.prompts == "vild"
    assert "3 classes x 16, with background" in capsys.readouterr().out


def test_of_others(folder):
    matrix = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    np.save("x.npy", matrix)
    main(["--convert", "x.npy", "--json", "x.json", "--tower", "B/32", "--prompts", "a", "--output", "y.safetensors"])
    found = load_class_embeddings("y.safetensors", ["apple", "cat"])
    assert (found.names, found.tower, found.prompts, found.background) == (("apple", "cat"), "B/32", "a", None)
    expected = torch.from_numpy(matrix[[2, 0]].astype(np.float32))
    torch.testing.assert_close(found.embeddings, expected / expected.norm(dim=1, keepdim=True))
    torch.save({"cat": torch.ones(2), "dog": torch.ones(2), "background": torch.tensor([0.0, 2])}, "x.pt")
    main(["--convert", "x.pt", "--output", "z.safetensors"])
    found = load_class_embeddings("z.safetensors")
    assert (found.names, found.tower, found.background.tolist()) == (("cat", "dog"), "unknown", [0, 1])


def test_errors(folder, capsys):
    assert "--convert with a file of embeddings" in fails(capsys, "--vocabulary", "cat")
    assert "give one or the other" in fails(capsys, "--convert", "x.pt", "--model", "ViT-B-16")
    named = ("--model", "ViT-B-16", "--checkpoint", "x.pt")
    assert "the vocabulary is empty" in fails(capsys, *named, "--vocabulary", " ")
    assert "more than once: cat" in fails(capsys, *named, "--vocabulary", "cat,dog,cat")
    assert "name 2 of 3 is empty" in fails(capsys, *named, "--vocabulary", "cat,,dog")
    assert "no checkpoint" in fails(capsys, *named, "--vocabulary", "cat")
    assert "nowhere.txt" in fails(capsys, *named, "--names", "nowhere.txt")
    (folder / "names.txt").write_text("[]")
    assert "has no list images" in fails(capsys, *named, "--json", "names.txt")
    np.save("x.npy", np.ones((2, 5), dtype=np.float32))
    assert "2 rows for 3 classes" in fails(capsys, "--convert", "x.npy", "--json", "x.json")
    assert not (folder / "out.safetensors").exists()


def test_help_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "ViLD's 63 templates" in capsys.readouterr().out
