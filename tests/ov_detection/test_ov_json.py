"""JSON to detectron2's records: paths, labels, and every rule about what is left out, counted."""

import copy

import pytest
from detectron2.structures import BoxMode
from ov_classes import OV_COCO_NOVEL
from ov_json import clip_box, load_ov_json
from ov_parts import HEIGHT, WIDTH, all_65, coco_categories, lvis_categories, random_content, write_images, write_json


@pytest.fixture
def coco(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=8)
    write_images(tmp_path / "images", content)
    return content


def load(tmp_path, content, train=True, **options):
    return load_ov_json(write_json(tmp_path / "x.json", content), tmp_path / "images", train, **options)


def test_training_records(tmp_path, coco):
    before = copy.deepcopy(coco)
    images = load(tmp_path, coco)
    name_of = {entry["id"]: entry["name"] for entry in coco["categories"]}
    novel = [entry for entry in coco["annotations"] if name_of[entry["category_id"]] in OV_COCO_NOVEL]
    base = [entry for entry in coco["annotations"] if entry not in novel]
    objects = [entry for entry in base if not entry["iscrowd"]]
    assert novel
    assert len(objects) < len(base)
    assert images.left_out["object of a novel class"] == len(novel)
    assert images.left_out["crowd region"] == len(base) - len(objects)
    assert [record["image_id"] for record in images.records] == sorted({entry["image_id"] for entry in objects})
    file_of = {entry["id"]: entry["file_name"] for entry in coco["images"]}
    for record in images.records:
        own = [entry for entry in objects if entry["image_id"] == record["image_id"]]
        assert record["file_name"] == str(tmp_path / "images" / file_of[record["image_id"]])
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
        assert len(record["annotations"]) == len(own)
        for kept, entry in zip(record["annotations"], own, strict=True):
            x, y, w, h = entry["bbox"]
            assert kept["bbox"] == pytest.approx([x, y, x + w, y + h])
            assert kept["bbox_mode"] == BoxMode.XYXY_ABS
            assert images.classes.names[kept["category_id"]] == name_of[entry["category_id"]]
            assert "segmentation" not in kept
    assert coco == before


def test_masks_are_kept_when_asked_for(tmp_path, coco):
    objects = [entry for entry in coco["annotations"] if not entry["iscrowd"]]
    objects[0]["segmentation"] = [[1, 2, 3, 4], objects[0]["segmentation"][0]]
    objects[1]["segmentation"] = [[1, 2, 3, 4]]
    del objects[2]["segmentation"]
    images = load(tmp_path, coco, masks=True, novel=())
    kept = [entry for record in images.records for entry in record["annotations"]]
    assert len(kept) == len(objects) - 2
    assert images.left_out["object without a mask"] == 2
    assert all(len(entry["segmentation"]) == 1 for entry in kept)
    assert "object without a mask" not in load(tmp_path, coco, novel=()).left_out


def test_test_records_are_all_and_bare(tmp_path, coco):
    images = load(tmp_path, coco, train=False)
    assert [record["image_id"] for record in images.records] == sorted(entry["id"] for entry in coco["images"])
    assert all("annotations" not in record for record in images.records)
    assert not images.left_out


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 6]),
        ([-5, -5, 10, 10], [0, 0, 5, 5]),
        ([50, 40, 100, 100], [50, 40, 64, 48]),
        ([1, 2, 0, 4], None),
        ([1, 2, 3, -4], None),
        ([70, 2, 3, 4], None),
        ([-9, 2, 9, 4], None),
    ],
)
def test_boxes(tmp_path, coco, bbox, expected):
    assert clip_box(bbox, HEIGHT, WIDTH) == expected
    chosen = next(entry for entry in coco["annotations"] if not entry["iscrowd"])
    chosen["bbox"] = bbox
    images = load(tmp_path, coco, novel=())
    assert images.left_out.get("box without area in its image", 0) == (expected is None)
    record = next(record for record in images.records if record["image_id"] == chosen["image_id"])
    assert (expected in [entry["bbox"] for entry in record["annotations"]]) == (expected is not None)


@pytest.mark.parametrize("bbox", [[1, 2, 3], None, "abcd", [1, 2, 3, float("nan")], [1, 2, 3, True], [1, 2, 3, "4"]])
def test_boxes_that_are_none(tmp_path, coco, bbox):
    next(entry for entry in coco["annotations"] if not entry["iscrowd"])["bbox"] = bbox
    with pytest.raises(ValueError, match=r"x.json: bbox is .* expected four numbers"):
        load(tmp_path, coco, novel=())


def test_images_without_objects_and_small_ones(tmp_path, coco):
    first, second = (entry["id"] for entry in coco["images"][:2])
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] != first]
    coco["images"][1]["height"] = 31
    images = load(tmp_path, coco, novel=())
    assert not {first, second} & {record["image_id"] for record in images.records}
    assert images.left_out["image without objects"] == 1
    assert images.left_out["image with a side of less than 32 pixels"] == 1
    with pytest.raises(ValueError, match=r"no image is left to train on \(.*'image without objects': 8"):
        load(tmp_path, {**coco, "annotations": []})


def test_lvis_paths_and_rare_classes(tmp_path):
    content = random_content(lvis_categories(9), crowds=False)
    content["images"][0]["coco_url"] = "http://host/train2017/7.png"
    content["images"][0]["file_name"] = "not this one.png"
    write_images(tmp_path / "images", {"images": [{**entry, "file_name": None} for entry in content["images"]]})
    images = load(tmp_path, content, train=False)
    folders = {record["image_id"]: record["file_name"].split("/")[-2] for record in images.records}
    assert folders.pop(content["images"][0]["id"]) == "train2017"
    assert set(folders.values()) == {"val2017"}
    training = load(tmp_path, content)
    labels = {entry["category_id"] for record in training.records for entry in record["annotations"]}
    assert not any(training.classes.split.novel[label] for label in labels)
    assert training.left_out["object of a novel class"] > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda made: made["images"][0].pop("file_name"), "has no file_name"),
        (lambda made: made["images"][0].update(height=0), "has the height 0 and the width 64"),
        (lambda made: made["images"][0].update(width="64"), "the width '64'"),
        (lambda made: made["annotations"][0].update(category_id=0), "unknown category_id"),
        (lambda made: made["categories"].append({"id": 999, "name": "stop sign"}), "make_ov_coco"),
        (lambda made: made.pop("annotations"), "has no list annotations"),
    ],
)
def test_wrong_files(tmp_path, coco, change, text):
    change(coco)
    with pytest.raises(ValueError, match=text):
        load(tmp_path, coco)


def test_nothing_there(tmp_path, coco):
    with pytest.raises(FileNotFoundError):
        load_ov_json(tmp_path / "nowhere.json", tmp_path, train=True)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is image_root .*images the right one"):
        load(tmp_path, coco)
