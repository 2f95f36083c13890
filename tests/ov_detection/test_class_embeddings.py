"""Class embeddings: made of prompts, written and read back, the two published layouts, and everything refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from class_embeddings import (
    ClassEmbeddings,
    check_vocabulary,
    embed_class_names,
    load_class_embeddings,
    save_class_embeddings,
)
from class_prompts import group_by_templates, readable_name
from clip_parts import tiny_clip, tiny_tokenizer
from safetensors.torch import save_file
from torch.nn import functional as F

NAMES = ("cat", "traffic_cone", "apple")


def made(background=True, names=NAMES, width=6):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(names) + 1, width, generator=generator) * 7
    return ClassEmbeddings(tuple(names), vectors[:-1], vectors[-1] if background else None, "a tower", "vild")


def test_vectors_are_normalised_once():
    found = made()
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.background.norm(), torch.ones(()))
    assert found.embeddings.dtype == torch.float32
    assert (len(found), found.width) == (3, 6)
    half = ClassEmbeddings(("x",), torch.tensor([[3.0, 4.0]]).half(), None, "", "")
    torch.testing.assert_close(half.embeddings, torch.tensor([[0.6, 0.8]]))


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


def test_fvit_dictionary(tmp_path):
    vectors = torch.randn(4, 5)
    content = dict(zip((*NAMES, "background"), vectors, strict=True))
    torch.save(content, tmp_path / "coco.pt")
    found = load_class_embeddings(tmp_path / "coco.pt", ["apple", "cat"])
    assert found.names == ("apple", "cat")
    torch.testing.assert_close(found.embeddings, F.normalize(vectors[[2, 0]], dim=1))
    torch.testing.assert_close(found.background, F.normalize(vectors[3], dim=0))
    assert load_class_embeddings(tmp_path / "coco.pt").names == NAMES


def test_detic_matrix(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    np.save(tmp_path / "x.npy", matrix)
    found = load_class_embeddings(tmp_path / "x.npy", NAMES)
    torch.testing.assert_close(found.embeddings, F.normalize(torch.from_numpy(matrix).float(), dim=1))
    assert (found.background, found.tower, found.prompts) == (None, "unknown", "unknown")
    with pytest.raises(ValueError, match="no class names: give one per row"):
        load_class_embeddings(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x\.npy: 3 rows for 2 classes"):
        load_class_embeddings(tmp_path / "x.npy", NAMES[:2])


class _Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_file_runs_code(tmp_path, capsys):
    with (tmp_path / "x.pt").open("wb") as file:
        torch.save({"cat": _Evil()}, file)
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, np.array([_Evil()], dtype=object), allow_pickle=True)
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
        ({"cat": torch.ones(3), "dog": torch.ones(4)}, r"widths \[3, 4\]"),
        ({"cat": torch.ones(3, 3)}, "1 of 1 entries are none"),
        ({"background": torch.ones(3)}, "nothing but a background"),
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


def test_classes_that_the_file_lacks():
    with pytest.raises(
        ValueError, match=r"2 of 3 classes have no embedding: traffic cone, dog \(nearest.*'traffic_cone'"
    ):
        made().select(["cat", "traffic cone", "dog"])


def test_another_width_than_the_tower():
    made().check_width(6, "ViT-B-16")
    with pytest.raises(ValueError, match=r"6 numbers \(text tower: a tower\), features of ViT-L-14 have 768"):
        made().check_width(768, "ViT-L-14")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "vocabulary is empty"),
        (["cat", "dog", "cat"], "more than once: cat"),
        (["cat", " "], "name 2 of 2 is empty"),
        (["cat", "."], "name 2 of 2 is empty"),
        ("cat", "must be a sequence of names, got the string 'cat'"),
    ],
)
def test_vocabularies_that_are_none(names, text):
    with pytest.raises(ValueError, match=text):
        check_vocabulary(names)
    with pytest.raises(ValueError, match=text):
        ClassEmbeddings(names, torch.ones(len(names), 2), None, "", "")
    with pytest.raises(ValueError, match=text):
        embed_class_names(None, None, names, "")
    with pytest.raises(ValueError, match=text):
        made().select(names)


def test_shapes_and_values():
    for names, vectors, background, text in (
        (("a", "b"), torch.ones(3, 2), None, r"2 classes need embeddings \[2, E\], got \[3, 2\]"),
        (("a", "b"), torch.ones(2), None, r"got \[2\]"),
        (("a",), torch.ones(1, 2), torch.ones(3), r"background's embedding must be \[2\], got \[3\]"),
        (("a",), torch.ones(1, 2), torch.zeros(2), "zero or not finite: background"),
        (("a",), torch.tensor([[1, float("nan")]]), None, "zero or not finite: a"),
    ):
        with pytest.raises(ValueError, match=text):
            ClassEmbeddings(names, vectors, background, "", "")


@pytest.mark.parametrize("prompts", ["vild", "a"])
def test_embedding_is_the_mean_over_prompts(prompts):
    clip, tokenizer = tiny_clip(), tiny_tokenizer()
    found = embed_class_names(clip, tokenizer, NAMES, "tiny", prompts, batch_size=50)
    assert (found.names, found.tower, found.prompts) == (NAMES, "tiny", prompts)
    for name, vector in zip((*NAMES, "background"), (*found.embeddings, found.background), strict=True):
        ((templates, _),) = group_by_templates([name], prompts).items()
        texts = tokenizer([template.replace("{}", readable_name(name)) for template in templates])
        with torch.inference_mode():
            expected = F.normalize(F.normalize(clip.encode_text(texts), dim=-1).mean(dim=0), dim=0)
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)
    backwards = embed_class_names(clip, tokenizer, NAMES[::-1], "tiny", prompts)
    torch.testing.assert_close(backwards.embeddings.flip(0), found.embeddings)
    assert json.dumps(found.names) == '["cat", "traffic_cone", "apple"]'
