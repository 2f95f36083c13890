"""Lists of objects from VOC, COCO and ImageNet layouts, their faults, and images at native resolution in batches."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from discovery_images import (
    DiscoveryImages,
    ImageObjects,
    ObjectList,
    build_native_loader,
    leave_out_broken,
    list_coco_objects,
    list_imagenet_objects,
    list_voc_objects,
)
from PIL import Image

from last_vit.data.synthetic import SyntheticObjects

NUMBER = 7


def coco_files(sets):
    """The first two arguments of `list_coco_objects`."""
    return sets / "coco/val2017", sets / "coco/annotations/instances_val2017.json"


@pytest.fixture
def sets(synthetic_sets, tmp_path):
    return shutil.copytree(synthetic_sets, tmp_path / "sets")


def test_three_layouts_tell_the_same(synthetic_sets):
    voc, coco = list_voc_objects(synthetic_sets / "voc", "val"), list_coco_objects(*coco_files(synthetic_sets))
    imagenet = list_imagenet_objects(synthetic_sets / "imagenet")
    samples = SyntheticObjects(NUMBER, "val", image_size=40, num_classes=3)
    rendered = [samples.render(index) for index in range(NUMBER)]
    for found in (voc, coco, imagenet):
        assert found.skipped == {}
        assert all(image.path.is_file() and image.frame_hw == (40, 40) for image in found.images)
    for found in (voc, coco):
        assert [image.boxes_xyxy.tolist() for image in found.images] == [[s.box_xyxy.tolist()] for s in rendered]
        names = [found.classes[int(image.labels)].replace("_", " ") for image in found.images]
        assert names == [sample.class_name for sample in rendered]
    # ImageNet's folders are in the order of the classes
    expected = sorted((s.label, s.box_xyxy.tolist()) for s in rendered)
    assert sorted((int(i.labels), i.boxes_xyxy[0].tolist()) for i in imagenet.images) == expected


def test_which_objects_count(sets):
    """VOC's difficult and truncated ones, from zero; COCO's boxes rounded, without crowds."""
    path = next((sets / "voc/VOC2012/Annotations").glob("*.xml"))
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    path.write_text(
        "<annotation><size><width>40</width><height>40</height></size>"
        f"<object><name>cat</name><difficult>1</difficult>{box.format(1, 11, 20, 40)}"
        f"<object><name>dog</name><truncated>1</truncated>{box.format(5, 5, 6, 6)}</annotation>"
    )
    found = list_voc_objects(sets / "voc/VOC2012", "val")
    image = next(image for image in found.images if image.path.stem == path.stem)
    assert image.boxes_xyxy.tolist() == [[0, 10, 20, 40], [4, 4, 6, 6]]
    assert [found.classes[label] for label in image.labels] == ["cat", "dog"]
    coco = coco_files(sets)
    content = json.loads(coco[1].read_text())
    first, second = content["annotations"][:2]
    first["bbox"] = [1.5, 2.4, 10.2, 11.2]  # to 11.7 and 13.6
    second["iscrowd"] = 1
    coco[1].write_text(json.dumps(content))
    found = list_coco_objects(*coco)
    assert found.images[0].boxes_xyxy.tolist() == [[2, 2, 12, 14]]
    assert found.images[1].boxes_xyxy.shape == (0, 4)
    assert len(found.images) == NUMBER


def test_a_list_chooses_and_orders_or_what_is_missing_is_counted(sets, tmp_path):
    coco, listing = coco_files(sets), tmp_path / "list.txt"
    listing.write_text("train2014/000000000004.jpg\n000000000002.jpg\n\n")
    found = list_coco_objects(*coco, listing)
    assert [image.path.name for image in found.images] == ["000000000004.jpg", "000000000002.jpg"]
    listing.write_text("".join(f"{number:012d}.jpg\n" for number in (1, 2, 3, 99)))
    (coco[0] / "000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 7 images are not in .*, such as 000000000002\.jpg"):
        list_coco_objects(*coco)
    found = list_coco_objects(*coco, listing, skip_broken=True)
    assert [image.path.name for image in found.images] == ["000000000001.jpg", "000000000003.jpg"]
    assert found.skipped == {"not in the annotations": 1, "no image file": 1}
    listing.write_text("99.jpg")
    with pytest.raises(ValueError, match="1 of the 1"):  # nothing at all is never skipped
        list_coco_objects(*coco, listing, skip_broken=True)


def test_faulty_lists(synthetic_sets, tmp_path):
    for content, match in (
        ("", "is empty"),
        ("000000000001.jpg\n000000000001.jpg", "names 000000000001.jpg 2 times"),
        ("a/000000000001.jpg\nb/000000000001.jpg", "fits images"),
        ("COCO_train2014_9.jpg\n000000000001.jpg", "1 of the 2 images .* annotations those of another split"),
    ):
        (tmp_path / "list.txt").write_text(content)
        with pytest.raises(ValueError, match=match):
            list_coco_objects(*coco_files(synthetic_sets), tmp_path / "list.txt")


def test_missing_annotations_lists_and_folders(sets):
    annotations = sorted((sets / "voc/VOC2012/Annotations").iterdir())
    annotations[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 7 .*another split or year"):
        list_voc_objects(sets / "voc", "val")
    found = list_voc_objects(sets / "voc", "val", skip_broken=True)
    assert (len(found.images), found.skipped) == (6, {"no annotation": 1})
    for path in annotations[1:]:
        path.unlink()
    next((sets / "imagenet/Annotations/CLS-LOC/val").iterdir()).unlink()
    assert list_imagenet_objects(sets / "imagenet", skip_broken=True).skipped == {"no annotation": 1}
    for call, match in (
        (lambda: list_voc_objects(sets / "voc", "val", skip_broken=True), "7 of the 7 images of split 'val'"),
        (lambda: list_imagenet_objects(sets / "imagenet"), "1 of the 7 images"),
        (lambda: list_coco_objects("nowhere", coco_files(sets)[1]), "nowhere does not exist"),
    ):
        with pytest.raises(FileNotFoundError, match=match):
            call()


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# (h, w): three on a grid of 5 x 3 patches of 8, two on 3 x 5, one on 4 x 3
SIZES = [(33, 20), (20, 33), (34, 18), (32, 24), (20, 40), (35, 22)]


@pytest.fixture
def objects(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for i, (height, width) in enumerate(SIZES):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        boxes = torch.tensor([[1.0, 2.0, 10.0, 12.0]] * (i % 3))
        images.append(ImageObjects(path, (height, width), boxes.reshape(-1, 4), torch.zeros(i % 3, dtype=torch.long)))
    return ObjectList(images, ("thing",), Counter())


def test_a_sample_is_the_files_pixels(objects):
    images = DiscoveryImages(objects, MEAN, STD)
    sample = images[2]
    expected = ((np.array(Image.open(objects.images[2].path)) / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(sample["image"], expected, rtol=1e-5, atol=1e-5)
    assert sample["image_hw"] == (34, 18) == images.image_hw(2)
    assert sample["objects_xyxy"].shape == (2, 4)
    assert (sample["index"], sample["name"]) == (2, "a/2.png")
    # the annotation of an image scaled by two, alone in its folder
    image = objects.images[2]._replace(frame_hw=(68, 36))
    sample = DiscoveryImages(objects._replace(images=[image]), MEAN, STD)[0]
    assert sample["objects_xyxy"][0].tolist() == [0.5, 1, 5, 6]
    assert sample["name"] == "2.png"


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "sizes"), [(1, 0, [1] * 6), (2, 1, [1, 1, 2, 2]), (4, 0, [1, 2, 3])]
)
def test_batches_hold_every_image_once_and_one_size_each(objects, batch_size, num_workers, sizes):
    images, seen = DiscoveryImages(objects, MEAN, STD), []
    batches = list(build_native_loader(images, 8, batch_size, num_workers))
    assert sorted(len(batch["name"]) for batch in batches) == sizes
    for batch in batches:
        for i, index in enumerate(batch["index"]):
            seen.append(index)
            padded, image, (height, width) = batch["image"][i], images[index]["image"], batch["image_hw"][i]
            assert padded.shape == (3, -(-height // 8) * 8, -(-width // 8) * 8)
            assert torch.equal(padded[:, :height, :width], image)
            assert padded.count_nonzero() == image.count_nonzero()
            assert torch.equal(batch["objects_xyxy"][i], images[index]["objects_xyxy"])
    assert sorted(seen) == list(range(6))


def test_faulty_images_are_named_or_counted(objects):
    with pytest.raises(ValueError, match=r"a/0\.png is 20 x 33 pixels .* less than a patch of 32"):
        next(iter(build_native_loader(DiscoveryImages(objects, MEAN, STD), 32, 1, 0)))
    wrong = [objects.images[0]._replace(frame_hw=(20, 33)), *objects.images[1:]]
    with pytest.raises(ValueError, match=r"0\.png is 20 x 33 .*annotation says 33 x 20"):
        DiscoveryImages(objects._replace(images=wrong), MEAN, STD)[0]
    objects.images[1].path.write_bytes(b"nothing")
    kept = leave_out_broken(ObjectList(wrong, ("thing",), Counter({"no annotation": 2})))
    assert [image.path.name for image in kept.images] == ["2.png", "3.png", "4.png", "5.png"]
    assert kept.skipped == {"no annotation": 2, "broken image": 1, "image and annotation of different shape": 1}
    with pytest.raises(ValueError, match="no image is left"):
        leave_out_broken(objects._replace(images=objects.images[1:2]))
