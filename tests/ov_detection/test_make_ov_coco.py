"""OV-COCO's files: what is kept of COCO's, the published counts, and the errors of the command line."""

import copy
import json
import sys

import make_ov_coco
import pytest
from make_ov_coco import OUTPUTS, main, make_split
from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL
from ov_parts import all_65, coco_categories, random_content, write_json

UNUSED = ["stop sign", "hair drier"]


def content(seed):
    """Images of COCO's kind, one of which shows unused classes alone, and one novel ones alone."""
    made = random_content(coco_categories(all_65() + UNUSED), num_images=12, seed=seed)
    number_of = {entry["name"]: entry["id"] for entry in made["categories"]}
    alone = {0: number_of["stop sign"], 1: number_of["cat"]}
    for place, category in alone.items():
        for entry in made["annotations"]:
            if entry["image_id"] == made["images"][place]["id"]:
                entry["category_id"] = category
    return made


@pytest.fixture
def coco(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_json(tmp_path / f"coco/annotations/instances_{split}2017.json", content(seed))
    return tmp_path / "coco"


def test_what_is_kept():
    source = content(0)
    before = copy.deepcopy(source)
    name_of = {entry["id"]: entry["name"] for entry in source["categories"]}
    for split, names in (("train", OV_COCO_BASE), ("val", OV_COCO_BASE + OV_COCO_NOVEL)):
        made = make_split(source, split)
        kept = [entry for entry in source["annotations"] if name_of[entry["category_id"]] in names]
        assert made["annotations"] == kept
        assert any(entry["iscrowd"] for entry in kept)
        assert made["info"] == source["info"]
        shown = {entry["image_id"] for entry in kept}
        assert made["images"] == [entry for entry in source["images"] if entry["id"] in shown]
        assert [entry["name"] for entry in made["categories"]] == all_65()
        assert [entry["id"] for entry in made["categories"]] == sorted(entry["id"] for entry in made["categories"])
    first, second = (entry["id"] for entry in source["images"][:2])
    assert first not in shown
    assert second in shown
    assert second not in {entry["id"] for entry in make_split(source, "train")["images"]}
    assert source == before


def test_files_are_written(coco, tmp_path, capsys):
    main(["--coco", str(coco), "--output", str(tmp_path / "out"), "--no-count-check"])
    for split, name in OUTPUTS.items():
        source = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
        assert json.loads((tmp_path / "out" / name).read_text()) == make_split(source, split)
    printed = capsys.readouterr().out
    assert "not compared with the published" in printed
    assert "val: 11 of 12 images" in printed
    main(["--coco", str(coco), "--split", "val", "--no-count-check"])
    assert (coco / "annotations" / OUTPUTS["val"]).is_file()
    assert not (coco / "annotations" / OUTPUTS["train"]).exists()


def test_published_counts(coco, tmp_path, capsys, monkeypatch):
    assert make_ov_coco.NUM_IMAGES == {"train": 107_761, "val": 4_836}
    arguments = ["--coco", str(coco), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(make_ov_coco, "NUM_IMAGES", {"train": 10, "val": 4_836})
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert "instances_val2017.json gives 11 images for val, the published split has 4,836" in error
    assert "--no-count-check" in error
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(make_ov_coco, "NUM_IMAGES", {"train": 10, "val": 11})
    main(arguments)
    assert "not compared" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda made: made.pop("images"), "has no list images"),
        (lambda made: made["categories"].pop(3), "1 of the 65 classes are not in its categories"),
        (lambda made: made["annotations"][0].update(image_id=1), "1 annotations have an unknown image_id"),
        (lambda made: made["categories"].append({"id": 900, "name": "cat"}), "share the name 'cat'"),
    ],
)
def test_broken_files(coco, change, text, capsys):
    path = coco / "annotations/instances_train2017.json"
    made = json.loads(path.read_text())
    change(made)
    path.write_text(json.dumps(made))
    with pytest.raises(SystemExit, match="2"):
        main(["--coco", str(coco), "--no-count-check"])
    error = capsys.readouterr().err
    assert "instances_train2017.json" in error
    assert text in error
    assert error.count("\n") == 1


def test_not_json_and_nothing_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--coco", str(tmp_path)])
    assert "--coco is the folder that holds annotations/" in capsys.readouterr().err
    write_json(tmp_path / "annotations/instances_train2017.json", [1])
    with pytest.raises(SystemExit, match="2"):
        main(["--coco", str(tmp_path)])
    (tmp_path / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        main(["--coco", str(tmp_path)])
    assert "is not readable JSON" in capsys.readouterr().err


def test_help_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "107,761 training" in capsys.readouterr().out
