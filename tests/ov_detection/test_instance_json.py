"""Files of instances as a whole: links between their parts, LVIS's lists, and whole files or none."""

import contextlib
import copy
import json

import pytest
from instance_json import check_links, check_lvis_lists, write_instances
from ov_parts import all_65, coco_categories, lvis_categories, random_content

from last_vit import atomic_file as module
from last_vit.atomic_file import atomic_file
from last_vit.data.coco import read_coco_json


def test_good_content_passes_and_comes_back(tmp_path):
    content = random_content(lvis_categories(9))
    check_links(content)
    check_lvis_lists(content)
    write_instances(tmp_path / "new/x.json", content)
    assert read_coco_json(tmp_path / "new/x.json") == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("images", {"id": None}, r"images\[0\] has no whole number as id"),
        ("images", {"id": 12345}, "annotations have an unknown image_id"),
        ("annotations", {"id": "7"}, r"annotations\[0\] has no whole number"),
        ("annotations", {"id": 1}, "annotations share the id 1"),
        ("annotations", {"category_id": 2}, "1 annotations have an unknown category_id, such as annotation 0"),
    ],
)
def test_broken_links(part, change, text):
    content = random_content(coco_categories(all_65()[:5]))
    content[part][0].update(change)
    with pytest.raises(ValueError, match=text):
        check_links(content)


def test_no_images():
    with pytest.raises(ValueError, match="list of images is empty"):
        check_links({"images": [], "annotations": [], "categories": []})


@pytest.mark.parametrize("name", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_lvis_lists_must_be_there(name):
    content = random_content(lvis_categories(9))
    number = content["images"][2]["id"]
    for change in (lambda image: image.pop(name), lambda image: image.update({name: 5})):
        broken = copy.deepcopy(content)
        change(broken["images"][2])
        with pytest.raises(ValueError, match=rf"1 of 6 images have no list {name} \(such as image {number}\)"):
            check_lvis_lists(broken)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_older_file_stays_when_writing_fails(tmp_path, monkeypatch, step):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_instances(target, {"images": []})
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_of_a_block_that_fails(tmp_path):
    with contextlib.suppress(KeyError), atomic_file(tmp_path / "x.bin") as file:
        file.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="JSON compliant"):
        write_instances(tmp_path / "x.json", {"images": [float("nan")]})
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps({})) == {}
