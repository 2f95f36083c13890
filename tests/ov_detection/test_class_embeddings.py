"""Class embeddings: prompts, files of all kinds, the command that builds them, and everything refused."""

import pickle
from hashlib import sha256

import numpy as np
import pytest
import torch
from build_class_embeddings import main
from class_embeddings import (
    ClassEmbeddings,
    check_vocabulary,
    embed_class_names,
    load_class_embeddings,
    save_class_embeddings,
)
from class_prompts import VILD_TEMPLATES, group_by_templates, readable_name
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from ov_parts import coco_categories, write_json
from safetensors.torch import save_file
from torch.nn import functional as F

from last_vit import clip_text

NAMES = ("cat", "traffic_cone", "apple")


def prompts(name, kind="vild"):
    ((templates, _),) = group_by_templates([name], kind).items()
    return [template.replace("{}", readable_name(name)) for template in templates]


def test_vilds_63_prompts():
    assert len(set(VILD_TEMPLATES)) == len(VILD_TEMPLATES) == 63
    found = prompts("alarm_clock")
    assert len(set(found)) == 63
    assert found[:3] == [
        "There is an alarm clock in the scene.",
        "There is the alarm clock in the scene.",
        "This is a photo of an alarm clock in the scene.",
    ]
    assert "This is a photo of the hard to see alarm clock." in found
    assert sha256("\n".join(sorted(found)).encode()).hexdigest()[:16] == "30ed31b991887ff2"


def test_articles_and_names_as_text():
    for name, article in (("cat", "a"), ("orange", "an"), ("Orange", "a"), ("unicorn", "an")):
        assert f"itap of {article} {name.lower()}." in prompts(name)
    assert list(group_by_templates(["cat", "apple", "dog", "egg"], "vild").values()) == [[0, 2], [1, 3]]
    assert prompts("apple", "a") == ["a apple"]
    for name, text in (("flip-flop_(sandal)", "flip-flop (sandal)"), ("tv/monitor", "tv or monitor"), ("Etc.", "etc")):
        assert readable_name(name) == text
    with pytest.raises(ValueError, match="prompts must be one of vild, a, got 'b'"):
        group_by_templates(["cat"], "b")


def made(background=True, names=NAMES, width=6):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(names) + 1, width, generator=generator) * 7
    return ClassEmbeddings(tuple(names), vectors[:-1], vectors[-1] if background else None, "a tower", "vild")


@pytest.mark.parametrize("background", [True, False])
def test_own_file(tmp_path, background):
    found = made(background)
    save_class_embeddings(tmp_path / "new/x.safetensors", found)
    for names in (None, ["apple", "cat"]):
        again = load_class_embeddings(tmp_path / "new/x.safetensors", names)
        expected = found if names is None else found.select(names)
        assert (again.names, again.tower, again.prompts) == (expected.names, "a tower", "vild")
        torch.testing.assert_close(again.embeddings, expected.embeddings)
        assert (again.background is None) == (not background)
    torch.testing.assert_close(again.embeddings, found.embeddings[[2, 0]])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]
    with pytest.raises(ValueError, match=r"written as \.safetensors, got x.npy"):
        save_class_embeddings("x.npy", found)


def test_published_files(tmp_path):
    vectors = torch.randn(4, 5)
    torch.save(dict(zip((*NAMES, "background"), vectors, strict=True)), tmp_path / "coco.pt")
    found = load_class_embeddings(tmp_path / "coco.pt", ["apple", "cat"])
    torch.testing.assert_close(found.embeddings, F.normalize(vectors[[2, 0]], dim=1))
    torch.testing.assert_close(found.background, F.normalize(vectors[3], dim=0))
    assert load_class_embeddings(tmp_path / "coco.pt").names == NAMES
    matrix = vectors[:3].half().numpy()
    np.save(tmp_path / "x.npy", matrix)
    found = load_class_embeddings(tmp_path / "x.npy", NAMES)
    torch.testing.assert_close(found.embeddings, F.normalize(vectors[:3].half().float(), dim=1))
    assert (found.background, found.tower, found.prompts) == (None, "unknown", "unknown")
    for names, text in ((None, "no class names: give one per row"), (NAMES[:2], r"x\.npy: 3 rows for 2 classes")):
        with pytest.raises(ValueError, match=text):
            load_class_embeddings(tmp_path / "x.npy", names)


class _Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_file_runs_code(tmp_path, capsys):
    torch.save({"cat": _Evil()}, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([_Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(_Evil()))
    for name in ("x.pt", "x.npy", "raw.npy"):
        with pytest.raises(ValueError, match=name):
            load_class_embeddings(tmp_path / name, ["cat"])
    assert "must not run" not in capsys.readouterr().out


def test_files_that_are_none(tmp_path):
    for name in ("x.pt", "x.npy", "x.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            load_class_embeddings(tmp_path / name, NAMES)
        (tmp_path / name).write_bytes(b"rubbish" * 9)
        with pytest.raises(ValueError, match=name):
            load_class_embeddings(tmp_path / name, NAMES)
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="without class names: expected one of ov_detection/build_class_embeddings"):
        load_class_embeddings(tmp_path / "x.safetensors")
    for content, text in (
        ({"cat": torch.ones(3), "dog": torch.ones(4)}, "all of one width"),
        ({"cat": torch.ones(3, 3)}, r"\(3, 3\)"),
        ({"background": torch.ones(3)}, "vocabulary is empty"),
        ({}, "expected a dictionary of class name"),
        ({"cat": torch.zeros(3)}, "zero or not finite: cat"),
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=text):
            load_class_embeddings(tmp_path / "x.pt")
    for matrix, text in ((np.ones(3), r"\[3\]"), (np.ones((3, 2), dtype=int), "int64")):
        np.save(tmp_path / "x.npy", matrix)
        with pytest.raises(ValueError, match=text):
            load_class_embeddings(tmp_path / "x.npy", NAMES)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "vocabulary is empty"),
        (["cat", "dog", "cat"], "more than once: cat"),
        (["cat", " "], "name 2 of 2 is empty"),
        (["cat", "traffic cone", "dog"], r"2 of 3 .* no embedding: traffic cone, dog \(nearest.*'traffic_cone'"),
    ],
)
def test_vocabularies_that_are_none(names, text):
    with pytest.raises(ValueError, match=text):
        made().select(names)
    if "embedding" not in text:
        with pytest.raises(ValueError, match=text):
            check_vocabulary(names)
        with pytest.raises(ValueError, match=text):
            ClassEmbeddings(names, torch.ones(len(names), 2), None, "", "")
        with pytest.raises(ValueError, match=text):
            embed_class_names(None, None, names, "")


@pytest.mark.parametrize(
    ("names", "vectors", "background", "text"),
    [
        (("a", "b"), torch.ones(3, 2), None, r"2 classes need embeddings \[2, E\], got \[3, 2\]"),
        (("a", "b"), torch.ones(2), None, r"got \[2\]"),
        (("a",), torch.ones(1, 2), torch.ones(3), r"background's embedding must be \[2\], got \[3\]"),
        (("a",), torch.ones(1, 2), torch.zeros(2), "zero or not finite: background"),
        (("a",), torch.tensor([[1, float("nan")]]), None, "zero or not finite: a"),
    ],
)
def test_shapes_and_values(names, vectors, background, text):
    with pytest.raises(ValueError, match=text):
        ClassEmbeddings(names, vectors, background, "", "")


@pytest.mark.parametrize("kind", ["vild", "a"])
def test_embedding_is_the_mean_over_prompts(kind):
    clip, tokenizer = tiny_clip(), tiny_tokenizer()
    found = embed_class_names(clip, tokenizer, NAMES, "tiny", kind, batch_size=50)
    assert (found.names, found.tower, found.prompts) == (NAMES, "tiny", kind)
    for name, vector in zip((*NAMES, "background"), (*found.embeddings, found.background), strict=True):
        with torch.inference_mode():
            vectors = F.normalize(clip.encode_text(tokenizer(prompts(name, kind))), dim=-1)
        torch.testing.assert_close(vector, F.normalize(vectors.mean(dim=0), dim=0), rtol=1e-5, atol=1e-6)
    backwards = embed_class_names(clip, tokenizer, NAMES[::-1], "tiny", kind)
    torch.testing.assert_close(backwards.embeddings.flip(0), found.embeddings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_json(tmp_path / "x.json", {"images": [], "annotations": [], "categories": coco_categories(NAMES)})
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return tmp_path


def test_a_file_from_a_tower(folder, capsys, monkeypatch):
    config, checkpoint = write_clip(folder)
    command = ["--model", str(config), "--checkpoint", str(checkpoint), "--device", "cpu", "--output", "o.safetensors"]
    expected = embed_class_names(tiny_clip(), tiny_tokenizer(), NAMES, "")
    for source in (["--json", "x.json"], ["--names", "names.txt"], ["--vocabulary", "cat, traffic_cone,apple"]):
        main([*command, *source])
        found = load_class_embeddings("o.safetensors")
        assert (found.names, found.prompts) == (NAMES, "vild")
        torch.testing.assert_close(found.embeddings, expected.embeddings)
        torch.testing.assert_close(found.background, expected.background)
        assert found.tower.startswith("clip_tiny, weights ")
        assert "3 classes x 16, with background" in capsys.readouterr().out
        monkeypatch.setattr(clip_text, "_encode", None)  # never again


def test_a_file_of_others(folder):
    matrix = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    np.save("x.npy", matrix)
    main(["--convert", "x.npy", "--json", "x.json", "--tower", "B/32", "--prompts", "a", "--output", "y.safetensors"])
    found = load_class_embeddings("y.safetensors", ["apple", "cat"])
    assert (found.names, found.tower, found.prompts, found.background) == (("apple", "cat"), "B/32", "a", None)
    torch.testing.assert_close(found.embeddings, F.normalize(torch.from_numpy(matrix[[2, 0]]).float(), dim=1))


MODEL = ("--model", "ViT-B-16", "--checkpoint", "x.pt")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--vocabulary", "cat"), "--convert with a file of embeddings"),
        (("--convert", "x.pt", "--model", "ViT-B-16"), "give one or the other"),
        ((*MODEL, "--vocabulary", "cat"), "no checkpoint"),
        ((*MODEL, "--names", "nowhere.txt"), "nowhere.txt"),
        ((*MODEL, "--json", "empty.json"), "has no list images"),
    ],
)
def test_flags_that_do_not_go_together(folder, refused, arguments, text):
    (folder / "empty.json").write_text("[]")
    assert text in refused(main, *arguments, "--output", "out.safetensors")
    assert not (folder / "out.safetensors").exists()
