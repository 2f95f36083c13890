"""Files of instances as a whole: links between their parts, LVIS's lists, and whole files or none."""

import copy

import pytest
from instance_json import check_links, check_lvis_lists, write_instances
from ov_parts import all_65, coco_categories, lvis_categories, random_content

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


def test_nothing_is_left_of_content_that_json_has_no_words_for(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_instances(tmp_path / "x.json", {"images": [float("nan")]})
    assert list(tmp_path.iterdir()) == []
