"""Official ids to classes, against lists typed by hand and another package's, and colours."""

import numpy as np
import pytest
from seg_id_tables import (
    CONTEXT59_IDS,
    apply_table,
    cityscapes_table,
    coco_category_classes,
    coco_object_table,
    coco_stuff_table,
)
from seg_overlays import palette
from seg_settings import display_names

from last_vit.data.voc import voc_colors

UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}


def test_coco_stuff_counts_the_used_ids():
    table = coco_stuff_table()
    used = [raw for raw in range(182) if raw not in UNUSED]
    assert table[used].tolist() == list(range(171))
    assert (table[[*UNUSED, *range(182, 255)]] == -1).all()
    assert table[255] == 255
    anchors = {0: "person", 12: "stopsign", 89: "toothbrush", 91: "banner", 123: "grass", 156: "sky-other"}
    assert {raw: display_names("coco_stuff")[table[raw]] for raw in anchors} == anchors


def test_coco_object_is_background_wherever_there_is_no_thing():
    table, stuff = coco_object_table(), coco_stuff_table()
    things = [raw for raw in range(90) if raw not in UNUSED]
    assert table[things].tolist() == list(range(1, 81)) == (stuff[things] + 1).tolist()
    assert (table[91:182] == 0).all()
    assert table[255] == 0
    assert (table[sorted(UNUSED)] == -1).all()


def test_coco_categories_are_those_of_detectron2():
    meta = pytest.importorskip("detectron2.data.datasets.builtin_meta")
    names = {each["id"]: each["name"] for each in meta.COCO_CATEGORIES if each["isthing"]}
    assert {number: display_names("coco_object")[label] for number, label in coco_category_classes().items()} == names


def test_cityscapes_evaluates_nineteen():
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    train_ids |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert cityscapes_table()[:34].tolist() == [train_ids.get(label, 255) for label in range(34)]
    assert (cityscapes_table()[34:] == -1).all()
    anchors = {7: "road", 19: "trafficlight", 26: "car", 33: "bicycle"}
    assert {label: display_names("cityscapes")[train_ids[label]] for label in anchors} == anchors


def test_context_ids_are_those_of_the_reference_converter():
    reference = [
        2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420, 454, 295, 296,
        427, 44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34, 207, 80, 355, 85, 347, 220,
        349, 360, 98, 187, 104, 105, 366, 189, 368, 113, 115,
    ]  # fmt: skip
    assert list(CONTEXT59_IDS) == sorted(reference)
    assert [display_names("context60")[CONTEXT59_IDS.index(i) + 1] for i in (2, 284, 397, 458)] == [
        "aeroplane", "person", "table", "wood",
    ]  # fmt: skip


def test_ids_that_no_file_holds_are_named():
    values = np.array([[0, 181, 255], [11, 200, 11]], dtype=np.uint8)
    assert apply_table(values[:1], coco_stuff_table()).tolist() == [[0, 170, 255]]
    with pytest.raises(ValueError, match="ids 11, 200, which are none of this data set's"):
        apply_table(values, coco_stuff_table())


def test_colours_are_vocs_and_differ():
    official = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert voc_colors()[[*range(7), 20]].tolist() == [*official, [0, 64, 128]]
    for num_classes, has_background in ((21, True), (171, False), (255, False), (256, True)):
        colors = palette(num_classes, has_background)
        assert colors.shape == (num_classes, 3)
        assert len(np.unique(colors, axis=0)) == num_classes
        assert (colors[0] == 0).all() == has_background
