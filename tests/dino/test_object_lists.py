"""Lists of objects from VOC, COCO and ImageNet layouts, written by the package's own writers, and their faults."""

import json
import shutil

import pytest
import torch
from object_lists import list_coco_objects, list_imagenet_objects, list_voc_objects

from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc

NUMBER = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    samples = SyntheticObjects(NUMBER, "val", image_size=40, num_classes=3)
    write_voc(samples, root / "voc")
    write_coco(samples, root / "coco")
    write_imagenet(samples, root / "imagenet")
    return root


@pytest.fixture
def sets(written, tmp_path):
    shutil.copytree(written, tmp_path / "sets")
    return tmp_path / "sets"


@pytest.fixture
def coco(sets):
    """Arguments of `list_coco_objects`, and a function that changes the annotations."""
    path = sets / "coco/annotations/instances_val2017.json"

    def change(edit):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return sets / "coco/val2017", path, change


def test_three_layouts_tell_the_same(sets, coco):
    lists = [
        list_voc_objects(sets / "voc", "val"),
        list_coco_objects(*coco[:2]),
        list_imagenet_objects(sets / "imagenet"),
    ]
    samples = SyntheticObjects(NUMBER, "val", image_size=40, num_classes=3)
    rendered = [samples.render(index) for index in range(NUMBER)]
    for found in lists:
        assert found.skipped == {}
        assert all(image.path.is_file() and image.frame_hw == (40, 40) for image in found.images)
    for found in lists[:2]:
        assert [image.boxes_xyxy.tolist() for image in found.images] == [[s.box_xyxy.tolist()] for s in rendered]
        names = [found.classes[int(image.labels)].replace("_", " ") for image in found.images]
        assert names == [sample.class_name for sample in rendered]
    # ImageNet's folders are in the order of the classes
    expected = sorted((s.label, s.box_xyxy.tolist()) for s in rendered)
    assert sorted((int(i.labels), i.boxes_xyxy[0].tolist()) for i in lists[2].images) == expected


def test_voc_counts_difficult_and_truncated_objects_from_zero(sets):
    stem = next((sets / "voc/VOC2012/Annotations").glob("*.xml")).stem
    (sets / f"voc/VOC2012/Annotations/{stem}.xml").write_text(
        "<annotation><size><width>40</width><height>40</height></size>"
        "<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax>"
        "<ymax>40</ymax></bndbox></object><object><name>dog</name><truncated>1</truncated><bndbox><xmin>5</xmin>"
        "<ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></object></annotation>"
    )
    found = list_voc_objects(sets / "voc/VOC2012", "val")
    image = next(image for image in found.images if image.path.stem == stem)
    assert image.boxes_xyxy.tolist() == [[0, 10, 20, 40], [4, 4, 6, 6]]
    assert [found.classes[label] for label in image.labels] == ["cat", "dog"]


def test_coco_rounds_boxes_and_leaves_out_crowds(coco):
    def edit(content):
        first, second = content["annotations"][:2]
        first["bbox"] = [1.5, 2.4, 10.2, 11.2]  # to 11.7 and 13.6
        second["iscrowd"] = 1

    coco[2](edit)
    found = list_coco_objects(*coco[:2])
    assert found.images[0].boxes_xyxy.tolist() == [[2, 2, 12, 14]]
    assert found.images[1].boxes_xyxy.shape == (0, 4)
    assert found.images[1].labels.dtype == torch.int64
    assert len(found.images) == NUMBER


def test_a_list_chooses_and_orders(coco, tmp_path):
    names = ["train2014/000000000004.jpg", "000000000002.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n")
    found = list_coco_objects(*coco[:2], tmp_path / "list.txt")
    assert [image.path.name for image in found.images] == ["000000000004.jpg", "000000000002.jpg"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        ("000000000001.jpg\n000000000001.jpg", "names 000000000001.jpg 2 times"),
        ("a/000000000001.jpg\nb/000000000001.jpg", "fits images"),
        (
            "COCO_train2014_000000000009.jpg\n000000000001.jpg",
            "1 of the 2 images .* annotations those of another split",
        ),
    ],
)
def test_faulty_lists(coco, tmp_path, content, match):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ValueError, match=match):
        list_coco_objects(*coco[:2], tmp_path / "list.txt")


def test_what_is_missing_is_counted_or_left_out(coco, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{number:012d}.jpg\n" for number in (1, 2, 3, 99)))
    (coco[0] / "000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images are not in .*, such as 000000000002\.jpg"):
        list_coco_objects(*coco[:2])
    found = list_coco_objects(*coco[:2], tmp_path / "list.txt", skip_broken=True)
    assert [image.path.name for image in found.images] == ["000000000001.jpg", "000000000003.jpg"]
    assert found.skipped == {"not in the annotations": 1, "no image file": 1}
    (tmp_path / "list.txt").write_text("99.jpg")
    with pytest.raises(ValueError, match="1 of the 1"):  # nothing at all is never skipped
        list_coco_objects(*coco[:2], tmp_path / "list.txt", skip_broken=True)


def test_annotations_of_another_split(sets):
    (sets / "voc/VOC2012/Annotations").rename(sets / "voc/others")
    (sets / "voc/VOC2012/Annotations").mkdir()
    with pytest.raises(FileNotFoundError, match="6 of the 6 images of split 'val' have no annotation"):
        list_voc_objects(sets / "voc", "val", skip_broken=True)
    for path in sorted((sets / "voc/others").iterdir())[1:]:
        shutil.copy(path, sets / "voc/VOC2012/Annotations")
    with pytest.raises(FileNotFoundError, match=r"1 of the 6 .*another split or year"):
        list_voc_objects(sets / "voc", "val")
    found = list_voc_objects(sets / "voc", "val", skip_broken=True)
    assert (len(found.images), found.skipped) == (5, {"no annotation": 1})


def test_missing_lists_and_folders(sets, coco):
    with pytest.raises(FileNotFoundError, match=r"no image list .*trainval\.txt; lists there: val"):
        list_voc_objects(sets / "voc", "trainval")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list_coco_objects("nowhere", coco[1])
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        list_coco_objects(coco[0], "no.json")
    with pytest.raises(FileNotFoundError, match=r"no\.txt"):
        list_coco_objects(*coco[:2], "no.txt")
    for path in (sets / "imagenet/Annotations/CLS-LOC/val").iterdir():
        path.unlink()
        break
    with pytest.raises(FileNotFoundError, match="1 of the 6 images"):
        list_imagenet_objects(sets / "imagenet")
    assert list_imagenet_objects(sets / "imagenet", skip_broken=True).skipped == {"no annotation": 1}
