"""Published settings: every constant of the protocols, the class names that they were measured with, custom sets."""

import itertools

import pytest
from seg_settings import DATASETS, PROTOCOLS, custom_setting, display_names, find_setting

NUM_CLASSES = {
    "voc20": 20, "voc21": 21, "context59": 59, "context60": 60, "coco_object": 81, "coco_stuff": 171, "ade20k": 150,
    "cityscapes": 19,
}  # fmt: skip
# (short side, crop, stride, logit scale, probability threshold)
PUBLISHED = {
    "sclip": {
        "voc20": (336, 224, 112, 40, 0), "voc21": (336, 224, 112, 65, 0.1), "context59": (336, 224, 112, 40, 0),
        "context60": (336, 224, 112, 50, 0.1), "coco_object": (336, 224, 112, 50, 0.1),
        "coco_stuff": (448, 224, 112, 40, 0), "ade20k": (336, 224, 112, 40, 0), "cityscapes": (560, 224, 112, 40, 0),
    },
    "naclip": {
        "voc20": (336, 0, 112, 40, 0), "voc21": (336, 0, 112, 40, 0.1), "context59": (336, 224, 112, 40, 0),
        "context60": (336, 224, 112, 40, 0.1), "coco_object": (336, 224, 112, 40, 0.1),
        "coco_stuff": (336, 224, 112, 40, 0), "ade20k": (336, 224, 112, 40, 0), "cityscapes": (560, 224, 112, 40, 0),
    },
    "clearclip": {
        "voc20": (448, 448, 224, 50, 0), "voc21": (448, 448, 224, 50, 0.5), "context59": (448, 448, 224, 50, 0),
        "context60": (448, 448, 224, 50, 0.15), "coco_object": (448, 448, 224, 50, 0.4),
        "coco_stuff": (448, 448, 224, 50, 0), "ade20k": (448, 448, 224, 50, 0), "cityscapes": (448, 224, 224, 50, 0),
    },
    "proxyclip": {
        "voc20": (336, 336, 112, 40, 0), "voc21": (336, 336, 112, 40, 0.1), "context59": (336, 336, 112, 40, 0),
        "context60": (336, 336, 112, 40, 0.05), "coco_object": (336, 336, 112, 40, 0.1),
        "coco_stuff": (336, 336, 112, 40, 0), "ade20k": (448, 336, 112, 40, 0), "cityscapes": (448, 224, 112, 40, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_setting_is_the_published_one(dataset, protocol):
    setting = find_setting(dataset, protocol)
    found = (setting.short_side, setting.crop, setting.stride, setting.logit_scale, setting.prob_threshold)
    assert found == PUBLISHED[protocol][dataset]
    assert setting.num_classes == NUM_CLASSES[dataset]
    assert setting.area_threshold == (0.1 if (dataset, protocol) == ("voc21", "sclip") else None)
    assert setting.uses_pamr == (protocol == "naclip")
    assert setting.pad_to_patch == (protocol == "clearclip")
    assert setting.has_background == (dataset in ("voc21", "context60", "coco_object"))
    assert setting.reduce_zero_label == (dataset in ("voc20", "context59", "ade20k"))
    assert (setting.dataset, setting.protocol) == (dataset, protocol)


def test_names_stand_once_but_for_the_bed_of_coco_object():
    for dataset, protocol in itertools.product(DATASETS, PROTOCOLS):
        names = [name for synonyms in find_setting(dataset, protocol).class_names for name in synonyms]
        twice = {name for name in names if names.count(name) > 1}
        assert twice == ({"bed"} if dataset == "coco_object" and protocol != "clearclip" else set()), dataset
        assert all(name == name.strip() and name for name in names)
    for dataset in DATASETS:
        assert len(set(display_names(dataset))) == len(display_names(dataset)) == NUM_CLASSES[dataset]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_synonyms_by_protocol(protocol):
    names = {dataset: find_setting(dataset, protocol).class_names for dataset in DATASETS}
    voc20, voc21, coco, context = (names[dataset] for dataset in ("voc20", "voc21", "coco_object", "context60"))
    has_many = protocol in ("sclip", "naclip")
    assert voc21[1:] == voc20
    assert (voc20[3], voc20[10]) == (("ship",), ("table",))
    assert len(voc20[14]) == (7 if has_many else 1)
    assert voc20[14][0] == "person"
    assert len(voc20[19]) == (5 if has_many else 1)
    assert voc21[0] == ("background",) if protocol == "clearclip" else len(voc21[0]) == 26
    assert len(coco[0]) == {"sclip": 26, "naclip": 26, "clearclip": 1, "proxyclip": 17}[protocol]
    assert coco[1][-1] == ("body" if has_many else "person")
    assert ("traffic light",) in coco
    assert ("trafficlight",) in names["coco_stuff"]
    assert context[0] == ("background",)
    assert context[1:] == names["context59"]


@pytest.mark.parametrize("zero_label", ["class", "background", "ignored"])
def test_custom_sets_take_the_likest_published_setting(zero_label):
    names = (("floor",), ("chair", "stool"))
    setting = custom_setting("sclip", names, zero_label, "rooms")
    is_background = zero_label == "background"
    assert (setting.dataset, setting.name, setting.class_names) == ("custom", "rooms", names)
    assert (setting.logit_scale, setting.prob_threshold) == ((50, 0.1) if is_background else (40, 0))
    assert (setting.has_background, setting.reduce_zero_label) == (is_background, zero_label == "ignored")


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"data set must be one of voc20, .*cityscapes, got 'voc12'"):
        find_setting("voc12", "sclip")
    with pytest.raises(ValueError, match=r"protocol must be one of sclip, naclip, clearclip, proxyclip, got 'mask'"):
        find_setting("voc20", "mask")
    many = tuple((str(index),) for index in range(255))
    assert custom_setting("sclip", many).num_classes == 255
    with pytest.raises(ValueError, match="hold 1 to 254 classes, got 255"):
        custom_setting("sclip", many, "ignored")
