"""OV-LVIS's training file: rare classes gone, everything else as it was; counts, lists, and errors."""

import json
import sys

import make_ov_lvis
import pytest
from make_ov_lvis import COUNTS, NUM_CLASSES, OUTPUT, main
from ov_parts import lvis_categories, random_content, write_json


@pytest.fixture
def lvis(tmp_path):
    for seed, split in enumerate(("train", "val")):
        made = random_content(lvis_categories(9), num_images=8, seed=seed, crowds=False)
        write_json(tmp_path / f"lvis/lvis_v1_{split}.json", made)
    return tmp_path / "lvis"


def test_rare_annotations_are_gone_and_nothing_else(lvis, tmp_path, capsys):
    main(["--lvis", str(lvis), "--output", str(tmp_path / "out"), "--no-count-check"])
    source = json.loads((lvis / "lvis_v1_train.json").read_text())
    made = json.loads((tmp_path / "out" / OUTPUT).read_text())
    rare = {entry["id"] for entry in source["categories"] if entry["frequency"] == "r"}
    assert len(rare) == 3
    kept = [entry for entry in source["annotations"] if entry["category_id"] not in rare]
    assert 0 < len(kept) < len(source["annotations"])
    assert made == {**source, "annotations": kept}
    printed = capsys.readouterr().out
    assert f"{len(kept)} annotations are of common and frequent classes" in printed
    assert "lvis_v1_val.json is used as it is" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == [OUTPUT]


def test_published_counts(lvis, monkeypatch, capsys):
    assert COUNTS == {"train": {"images": 100_170, "annotations": 1_270_141}, "val": {"images": 19_809}}
    assert NUM_CLASSES == {"r": 337, "c": 461, "f": 405}
    with pytest.raises(SystemExit, match="2"):
        main(["--lvis", str(lvis), "--split", "val"])
    error = capsys.readouterr().err
    assert "8 images (published: 19,809); 3 r (published: 337)" in error
    monkeypatch.setattr(make_ov_lvis, "COUNTS", {"train": {"images": 8, "annotations": 40}, "val": {"images": 8}})
    monkeypatch.setattr(make_ov_lvis, "NUM_CLASSES", {"r": 3, "c": 3, "f": 3})
    main(["--lvis", str(lvis)])
    assert (lvis / OUTPUT).is_file()
    monkeypatch.setattr(make_ov_lvis, "COUNTS", {"train": {"images": 8, "annotations": 39}, "val": {"images": 8}})
    with pytest.raises(SystemExit, match="2"):
        main(["--lvis", str(lvis)])
    assert "40 annotations (published: 39)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda made: made["images"][0].pop("neg_category_ids"), "1 of 8 images have no list neg_category_ids"),
        (lambda made: [entry.pop("frequency") for entry in made["categories"]], "have no frequency"),
        (lambda made: made["annotations"][0].update(category_id=77), "unknown category_id"),
        (lambda made: made.pop("categories"), "has no list categories"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_files(lvis, change, text, split, capsys):
    path = lvis / f"lvis_v1_{split}.json"
    made = json.loads(path.read_text())
    change(made)
    path.write_text(json.dumps(made))
    with pytest.raises(SystemExit, match="2"):
        main(["--lvis", str(lvis), "--no-count-check"])
    error = capsys.readouterr().err
    assert path.name in error
    assert text in error
    assert not (lvis / OUTPUT).exists()


def test_nothing_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--lvis", str(tmp_path)])
    assert "--lvis is the folder" in capsys.readouterr().err


def test_help_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "lvis_v1_train_norare.json" in capsys.readouterr().out
