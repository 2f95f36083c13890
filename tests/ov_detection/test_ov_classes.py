"""Base and novel classes, links between the parts of a file, LVIS's lists, and what is refused."""

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL, check_links, check_lvis_lists, check_same_classes, read_ov_classes
from ov_parts import lvis_categories, random_content

# COCO ids of the 17 novel classes, as the official files have them, and their places among the 65
NOVEL_IDS = [5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87]
NOVEL_PLACES = [4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]


def test_the_published_splits():
    assert (len(set(OV_COCO_BASE)), len(set(OV_COCO_NOVEL))) == (48, 17)
    used = [entry for entry in COCO_CATEGORIES if entry["name"] in OV_COCO_BASE + OV_COCO_NOVEL]
    classes = read_ov_classes(used[::-1])
    assert (len(classes), classes.is_lvis) == (65, False)
    assert [classes.category_ids[place] for place in NOVEL_PLACES] == NOVEL_IDS
    assert (~classes.is_base).nonzero().flatten().tolist() == NOVEL_PLACES
    assert set(classes.base_names) == set(OV_COCO_BASE)
    classes = read_ov_classes(LVIS_CATEGORIES)
    assert (len(classes), int(classes.is_base.sum()), classes.is_lvis) == (1203, 866, True)
    assert classes.names[:2] == ("aerosol_can", "air_conditioner")


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
def test_classes_that_are_none(categories, novel, text):
    with pytest.raises(ValueError, match=text):
        read_ov_classes(categories, novel)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda made: made["images"][0].update(id=None), r"images\[0\] has no whole number as id"),
        (lambda made: made["images"][0].update(id=12345), "annotations have an unknown image_id"),
        (lambda made: made["images"].clear(), "list of images is empty"),
        (lambda made: made["annotations"][0].update(id="7"), r"annotations\[0\] has no whole number"),
        (
            lambda made: made["annotations"][0].update(id=1),
            r"annotations share ids, 1 of them such as 1: .*docs/data\.md",
        ),
        (lambda made: made["images"][0].update(made["images"][1]), "images share ids, 1 of them such as .*: keep one"),
        (lambda made: made["annotations"][0].update(category_id=2), "1 .* unknown category_id, such as annotation 0"),
        (lambda made: made["images"][2].pop("neg_category_ids"), "1 of 6 images have no list neg_category_ids"),
        (lambda made: made["images"][2].update(not_exhaustive_category_ids=5), "have no list not_exhaustive_category"),
    ],
)
def test_files_that_do_not_fit_together(change, text):
    content = random_content(lvis_categories(9))
    for entry in content["categories"]:
        entry["id"] *= 3
    for entry in content["annotations"]:
        entry["category_id"] *= 3
    check_links(content)
    check_lvis_lists(content)
    change(content)
    with pytest.raises(ValueError, match=text):  # noqa: PT012 (which of the two says it is in its words)
        check_links(content)
        check_lvis_lists(content)


@pytest.mark.parametrize(
    ("names", "novel"), [(["person", "cat"], None), (["cat", "dog"], None), (["cat", "person"], ())]
)
def test_labels_must_mean_the_same(names, novel):
    first = read_ov_classes([{"id": 1, "name": "cat"}, {"id": 2, "name": "person"}])
    check_same_classes(first, read_ov_classes([{"id": 7, "name": "person"}, {"id": 3, "name": "cat"}]))
    other = [{"id": place, "name": name} for place, name in enumerate(names)]
    with pytest.raises(ValueError, match="labels would not mean the same: the sets have 2 and 2 classes"):
        check_same_classes(first, read_ov_classes(other, novel))
