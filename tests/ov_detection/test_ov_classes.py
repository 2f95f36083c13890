"""Base and novel classes: the published split of COCO, LVIS's frequencies, own sets, and what is refused."""

import pytest
from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL, read_ov_classes
from ov_parts import all_65, coco_categories, lvis_categories

# COCO ids of the 65 classes, as the official files have them
NOVEL_IDS = [5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87]
NOVEL_PLACES = [4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]


def test_the_published_split():
    assert (len(set(OV_COCO_BASE)), len(set(OV_COCO_NOVEL))) == (48, 17)
    assert not set(OV_COCO_BASE) & set(OV_COCO_NOVEL)
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    used = [entry for entry in COCO_CATEGORIES if entry["name"] in OV_COCO_BASE + OV_COCO_NOVEL]
    classes = read_ov_classes(used[::-1])
    assert len(classes) == 65
    assert [classes.category_ids[place] for place in NOVEL_PLACES] == NOVEL_IDS
    assert classes.split.novel.nonzero().flatten().tolist() == NOVEL_PLACES
    assert (classes.split.base == ~classes.split.novel).all()
    assert not classes.is_lvis


def test_lvis_by_frequency():
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    classes = read_ov_classes(LVIS_CATEGORIES)
    assert (len(classes), int(classes.split.novel.sum()), int(classes.split.base.sum())) == (1203, 337, 866)
    assert classes.is_lvis
    assert classes.names[:2] == ("aerosol_can", "air_conditioner")


def test_order_is_that_of_ascending_ids():
    entries = coco_categories(all_65())
    assert [entry["id"] for entry in entries] != sorted(entry["id"] for entry in entries)
    classes = read_ov_classes(entries)
    assert list(classes.names) == all_65()
    assert classes.label_of == {3 * label + 1: label for label in range(65)}


def test_own_sets_name_their_novel_classes():
    entries = [{"id": 2, "name": "blue"}, {"id": 1, "name": "red"}]
    assert read_ov_classes(entries, novel=["blue"]).split.novel.tolist() == [False, True]
    assert read_ov_classes(entries, novel=()).split.base.all()
    assert read_ov_classes(lvis_categories(6), novel=["class_1"]).split.novel.tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("categories", "novel", "text"),
    [
        ([], None, "empty"),
        ([{"id": 1, "name": "red"}], None, "cannot tell base from novel: 1 of 1 .* such as red; .*make_ov_coco"),
        ([{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}], None, "share the id 1"),
        ([{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}], None, "share the name 'cat'"),
        ([{"id": "1", "name": "cat"}], None, r"categories\[0\] must have a whole number"),
        ([{"id": 1}], None, r"categories\[0\] must"),
        (["cat"], None, r"categories\[0\] must"),
        ([{"id": 1, "name": "cat"}], ["dog"], "novel classes that the file does not have: dog; it has cat"),
        ([{"id": 1, "name": "a", "frequency": "r"}, {"id": 2, "name": "b"}], None, "1 of 2 categories have no known"),
        ([{"id": 1, "name": "a", "frequency": "x"}], None, "such as 'x'"),
    ],
)
def test_errors(categories, novel, text):
    with pytest.raises(ValueError, match=text):
        read_ov_classes(categories, novel)
