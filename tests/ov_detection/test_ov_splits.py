"""make_ov_coco.py and make_ov_lvis.py: what is kept of the official files, the published counts, and errors."""

import copy
import json

import make_ov_coco
import make_ov_lvis
import ov_splits
import pytest
from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL
from ov_parts import all_65, coco_categories, lvis_categories, random_content, write_json
from ov_splits import COCO_OUTPUTS, LVIS_OUTPUT, coco_split


def coco_content(seed):
    """Images of COCO's kind, one of which shows unused classes alone, and one novel ones alone."""
    made = random_content(coco_categories([*all_65(), "stop sign", "hair drier"]), num_images=12, seed=seed)
    number_of = {entry["name"]: entry["id"] for entry in made["categories"]}
    for place, name in enumerate(("stop sign", "cat")):
        for entry in made["annotations"]:
            if entry["image_id"] == made["images"][place]["id"]:
                entry["category_id"] = number_of[name]
    return made


@pytest.fixture
def coco(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_json(tmp_path / f"coco/annotations/instances_{split}2017.json", coco_content(seed))
    return tmp_path / "coco"


@pytest.fixture
def lvis(tmp_path):
    for seed, split in enumerate(("train", "val")):
        made = random_content(lvis_categories(9), num_images=8, seed=seed, crowds=False)
        write_json(tmp_path / f"lvis/lvis_v1_{split}.json", made)
    return tmp_path / "lvis"


def test_what_is_kept_of_coco():
    source = coco_content(0)
    before = copy.deepcopy(source)
    name_of = {entry["id"]: entry["name"] for entry in source["categories"]}
    for split, names in (("train", OV_COCO_BASE), ("val", OV_COCO_BASE + OV_COCO_NOVEL)):
        made = coco_split(source, split)
        kept = [entry for entry in source["annotations"] if name_of[entry["category_id"]] in names]
        assert made["annotations"] == kept
        assert any(entry["iscrowd"] for entry in kept)
        assert made["info"] == source["info"]
        shown = {entry["image_id"] for entry in kept}
        assert made["images"] == [entry for entry in source["images"] if entry["id"] in shown]
        assert [entry["name"] for entry in made["categories"]] == all_65()
    first, second = (entry["id"] for entry in source["images"][:2])
    assert first not in shown
    assert second in shown
    assert second not in {entry["id"] for entry in coco_split(source, "train")["images"]}
    assert source == before


def test_coco_files_and_counts(coco, tmp_path, capsys, monkeypatch, refused):
    assert ov_splits.COCO_IMAGES == {"train": 107_761, "val": 4_836}
    arguments = ["--coco", str(coco), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(ov_splits, "COCO_IMAGES", {"train": 10, "val": 4_836})
    error = refused(make_ov_coco.main, *arguments)
    assert "instances_val2017.json gives 11 images for val, the published split has 4,836" in error
    assert "--no-count-check" in error
    assert not (tmp_path / "out").exists()
    make_ov_coco.main([*arguments, "--no-count-check"])
    for split, name in COCO_OUTPUTS.items():
        source = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
        assert json.loads((tmp_path / "out" / name).read_text()) == coco_split(source, split)
    printed = capsys.readouterr().out
    assert "not compared with the published" in printed
    assert "val: 11 of 12 images" in printed
    monkeypatch.setattr(ov_splits, "COCO_IMAGES", {"train": 10, "val": 11})
    make_ov_coco.main(["--coco", str(coco), "--split", "val"])
    assert "not compared" not in capsys.readouterr().out
    assert (coco / "annotations" / COCO_OUTPUTS["val"]).is_file()
    assert not (coco / "annotations" / COCO_OUTPUTS["train"]).exists()


def test_lvis_files_and_counts(lvis, tmp_path, capsys, monkeypatch, refused):
    assert ov_splits.LVIS_COUNTS == {"train": {"images": 100_170, "annotations": 1_270_141}, "val": {"images": 19_809}}
    assert ov_splits.LVIS_CLASSES == {"r": 337, "c": 461, "f": 405}
    error = refused(make_ov_lvis.main, "--lvis", lvis, "--split", "val")
    assert "8 images (published: 19,809); 3 r (published: 337)" in error
    make_ov_lvis.main(["--lvis", str(lvis), "--output", str(tmp_path / "out"), "--no-count-check"])
    source = json.loads((lvis / "lvis_v1_train.json").read_text())
    rare = {entry["id"] for entry in source["categories"] if entry["frequency"] == "r"}
    kept = [entry for entry in source["annotations"] if entry["category_id"] not in rare]
    assert 0 < len(kept) < len(source["annotations"])
    assert json.loads((tmp_path / "out" / LVIS_OUTPUT).read_text()) == {**source, "annotations": kept}
    printed = capsys.readouterr().out
    assert f"{len(kept)} annotations are of common and frequent classes" in printed
    assert "lvis_v1_val.json is used as it is" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LVIS_OUTPUT]
    monkeypatch.setattr(ov_splits, "LVIS_CLASSES", {"r": 3, "c": 3, "f": 3})
    monkeypatch.setattr(ov_splits, "LVIS_COUNTS", {"train": {"images": 8, "annotations": 39}, "val": {"images": 8}})
    assert "40 annotations (published: 39)" in refused(make_ov_lvis.main, "--lvis", lvis)


@pytest.mark.parametrize(
    ("script", "folder", "name", "change", "text"),
    [
        (make_ov_coco, "coco", "train", lambda made: made.pop("images"), "has no list images"),
        (make_ov_coco, "coco", "train", lambda made: made["categories"].pop(3), "1 of the 65 classes are not in its"),
        (make_ov_coco, "coco", "train", lambda made: made["annotations"][0].update(image_id=1), "unknown image_id"),
        (make_ov_lvis, "lvis", "val", lambda made: made["images"][0].pop("neg_category_ids"), "no list neg_category"),
        (make_ov_lvis, "lvis", "train", lambda made: [x.pop("frequency") for x in made["categories"]], "no frequency"),
    ],
)
def test_broken_files(coco, lvis, tmp_path, script, folder, name, change, text, refused):
    path = {"coco": coco / f"annotations/instances_{name}2017.json", "lvis": lvis / f"lvis_v1_{name}.json"}[folder]
    made = json.loads(path.read_text())
    change(made)
    write_json(path, made)
    error = refused(script.main, f"--{folder}", tmp_path / folder, "--no-count-check")
    assert path.name in error
    assert text in error
    assert not (lvis / LVIS_OUTPUT).exists()
    path.write_text("{")
    assert "is not readable JSON" in refused(script.main, f"--{folder}", tmp_path / folder, "--no-count-check")
    assert f"--{folder} is the folder" in refused(script.main, f"--{folder}", tmp_path)
