"""COCO's instances: boxes and masks against the synthetic truth and pycocotools, and every fault by name."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

from last_vit.data.coco import CocoInstances
from last_vit.data.synthetic import SyntheticObjects, write_coco

# pycocotools on numpy 2

HEIGHT, WIDTH = SIZE = [40, 60]
AREA = HEIGHT * WIDTH
L_SHAPE = [10, 5, 30, 5, 30, 15, 20, 15, 20, 25, 10, 25]
SQUARE = [40.5, 10, 50, 10, 50, 20, 40.5, 20]


def _content():
    """Two images, the second first in the annotations: a polygon object, a two-part object, a crowd region."""
    crowd = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    crowd[30:35, 2:9] = 1
    text = mask_tools.encode(np.asfortranarray(crowd))["counts"].decode()
    return {
        "images": [
            {"id": 9, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 4, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 5, "file_name": "none.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            _object(1, 4, [5, 5, 10, 10], [[5, 5, 15, 5, 15, 15, 5, 15]]),
            _object(2, 9, [10, 5, 20, 20], [L_SHAPE]),
            _object(3, 9, [2, 30, 7, 5], {"size": [HEIGHT, WIDTH], "counts": text}, iscrowd=1),
            _object(7, 9, [10, 5, 40, 20], [L_SHAPE, SQUARE], category_id=18),
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }


def _object(number, image_id, bbox, segmentation, category_id=1, iscrowd=0):
    ids = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**ids, "bbox": bbox, "segmentation": segmentation, "iscrowd": iscrowd}


@pytest.fixture
def open_content(tmp_path):
    def _open(content):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return CocoInstances(path)

    return _open


def test_boxes_and_masks_are_the_synthetic_truth(tmp_path):
    samples = SyntheticObjects(6, "val", image_size=48, num_classes=4)
    write_coco(samples, tmp_path)
    coco = CocoInstances(tmp_path / "annotations/instances_val2017.json")
    assert list(coco.categories.values()) == samples.classes
    assert coco.image_hw.tolist() == [[48, 48]] * 6
    for index in range(6):
        rendered, objects = samples.render(index), coco.objects(index)
        assert (tmp_path / "val2017" / coco.file_names[index]).is_file()
        assert torch.equal(objects.boxes_xyxy, rendered.box_xyxy[None])
        assert coco.categories[int(objects.category_ids[0])] == rendered.class_name
        assert torch.equal(coco.masks(index), rendered.mask[None])
    with pytest.raises(FileNotFoundError, match=r"no file .*/a\.json; expected COCO.s instances_"):
        CocoInstances(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"captions_val2017\.json has no list categories"):
        CocoInstances(tmp_path / "annotations/captions_val2017.json")


def test_objects_go_to_their_images_in_order(open_content):
    coco = open_content(_content())
    assert coco.file_names == ["b.jpg", "a.jpg", "none.jpg"]
    assert coco.categories == {18: "dog", 1: "person"}
    objects = coco.objects(0)
    assert objects.boxes_xyxy.tolist() == [[10, 5, 30, 25], [2, 30, 9, 35], [10, 5, 50, 25]]
    assert objects.boxes_xyxy.dtype == torch.float32
    assert objects.category_ids.tolist() == [1, 1, 18]
    assert objects.is_crowd.tolist() == [False, True, False]
    assert coco.objects(1).boxes_xyxy.tolist() == [[5, 5, 15, 15]]
    assert (coco.objects(2).boxes_xyxy.shape, coco.masks(2).shape) == ((0, 4), (0, 20, 30))
    assert not coco.union_mask(2).any()


def test_masks_are_pycocotools_own(open_content, tmp_path):
    coco = open_content(_content())
    theirs = COCO(tmp_path / "instances.json")
    expected = torch.stack([torch.from_numpy(theirs.annToMask(theirs.anns[number])) for number in (2, 3, 7)]).bool()
    assert torch.equal(coco.masks(0), expected)
    assert torch.equal(coco.union_mask(0), expected[0] | expected[2])
    assert torch.equal(coco.union_mask(0, crowd=True), expected[1])


def test_the_three_ways_to_write_a_mask_agree(open_content):
    generator = torch.Generator().manual_seed(0)
    for density in (0.0, 0.5, 1.0):
        content = _content()
        mask = (torch.rand(HEIGHT, WIDTH, generator=generator) < density).numpy().astype(np.uint8)
        text = mask_tools.encode(np.asfortranarray(mask))["counts"].decode()
        runs = np.diff(np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=2, append=2))).tolist()
        counts = runs if mask[0, 0] == 0 else [0, *runs]
        content["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": text}
        content["annotations"][2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
        masks = open_content(content).masks(0)
        assert np.array_equal(masks[0], mask)
        assert np.array_equal(masks[1], mask)


def test_official_boxes_without_area_are_counted_and_others_clipped(open_content):
    content = _content()
    content["annotations"][0]["bbox"] = [-3, 15, 40.5, 30]
    content["annotations"][3]["bbox"] = [5, 5, 10, 0]
    coco = open_content(content)
    assert coco.skipped == {"box without area": 1}
    assert coco.objects(0).boxes_xyxy.tolist() == [[10, 5, 30, 25], [2, 30, 9, 35]]
    assert coco.masks(0).shape == (2, HEIGHT, WIDTH)
    assert coco.objects(1).boxes_xyxy.tolist() == [[0, 15, 30, 20]]
    assert len(open_content({**_content(), "annotations": []}).objects(0).boxes_xyxy) == 0


@pytest.mark.parametrize(
    ("part", "number", "change", "match"),
    [
        ("annotations", 1, {"image_id": 77}, r"annotations\[1\]: annotation 2 is of image 77"),
        ("annotations", 1, {"category_id": 3}, r"annotations\[1\].*category 3"),
        ("annotations", 1, {"id": 1}, r"annotations\[1\]: another annotation has the id 1"),
        ("annotations", 1, {"id": "1"}, r"annotations\[1\]: id is '1', expected a whole"),
        ("annotations", 1, {"iscrowd": "no"}, "iscrowd is 'no', expected 0 or 1"),
        ("annotations", 1, {"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], expected \[x, y, width"),
        ("annotations", 1, {"bbox": [5, 5, -2, 5]}, r"\[5, 5, -2, 5\] has nothing inside the 60 x 40"),
        ("annotations", 1, {"bbox": [60, 5, 2, 5]}, "nothing inside the 60 x 40"),
        ("annotations", 1, {"bbox": [5, 5, float("nan"), 5]}, "nothing inside"),
        ("images", 1, {"id": 9}, r"images\[1\]: another image has the id 9"),
        ("images", 1, {"file_name": "b.jpg"}, r"images\[1\].*file_name b\.jpg"),
        ("images", 1, {"height": 0}, r"images\[1\]: image a\.jpg has 30 x 0 pixels"),
        ("categories", 1, {"id": 18}, r"categories\[1\]: id 18 is that of 'dog', too"),
    ],
)
def test_faulty_entries_are_named(open_content, part, number, change, match):
    content = _content()
    content[part][number].update(change)
    with pytest.raises(ValueError, match=rf"instances\.json.*{match}"):
        open_content(content)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"annotations": [{"id": 1}]}, r"annotations\[0\] has no .*; expected COCO's instances_"),
        ({"annotations": ["text"]}, r"annotations\[0\]"),
        ({"images": []}, "lists no image"),
        ({"categories": None}, r"no list categories; expected COCO's instances_\*\.json"),
    ],
)
def test_other_contents_are_named(open_content, change, match):
    with pytest.raises(ValueError, match=rf"instances\.json.*{match}"):
        open_content({**_content(), **change})


def test_other_files_are_named(tmp_path):
    for text in ("[]", "7", "{", "\xff", "[" * 100000):
        (tmp_path / "x.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"x\.json.*expected COCO's instances_\*\.json"):
            CocoInstances(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        CocoInstances(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        (None, "None is neither polygons nor run lengths"),
        ([[1, 1, 3, 1]], "at least three points"),
        ([L_SHAPE, {}], "at least three points"),
        ([[1, 1, 3, float("nan"), 3, 3]], "outside the 60 x 40 image"),
        ([[1, 1, 1e9, 1, 3, 3]], "outside the 60 x 40 image"),
        ({"size": [WIDTH, HEIGHT], "counts": [AREA]}, r"size \[60, 40\].*\[40, 60\]"),
        ({"size": SIZE, "counts": [1, 2, 3]}, "fill 6 of the image's 2400 pixels"),
        ({"size": SIZE, "counts": [0, AREA + 1]}, "fill 2401"),
        ({"size": SIZE, "counts": [AREA + 5, -5]}, "neither text nor a list"),
        ({"size": SIZE, "counts": "11"}, "fill 2 of"),
        ({"size": SIZE, "counts": "o"}, "end in the middle of a number"),
        ({"size": SIZE, "counts": "1 1"}, "character ' '"),
    ],
)
def test_broken_segmentations_stop_when_asked_for(open_content, segmentation, match):
    """They would come out of pycocotools as whatever lies in memory, or end the process."""
    content = _content()
    content["annotations"][1]["segmentation"] = segmentation
    coco = open_content(content)
    assert len(coco.objects(0).boxes_xyxy) == 3
    assert coco.masks(1).any()
    for decode in (coco.masks, coco.union_mask):
        with pytest.raises(ValueError, match=rf"instances\.json: image b\.jpg: .*{match}"):
            decode(0)
