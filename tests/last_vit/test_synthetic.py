"""The synthetic set: a pure function of (seed, split, index), with honest boxes, and readable in three layouts."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from last_vit.boxes import box_area
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.synthetic import MAX_CLASSES, SyntheticObjects, write_coco, write_imagenet, write_voc
from last_vit.data.voc import read_voc_xml


def _pixels(samples, index):
    return np.asarray(samples.render(index).image)


def test_pure_function_of_seed_split_and_index():
    samples = SyntheticObjects(50, "train", image_size=32, seed=1)
    again = SyntheticObjects(9, "train", image_size=32, seed=1)
    for index in (3, 0, 8):
        assert np.array_equal(_pixels(samples, index), _pixels(again, index))
        assert torch.equal(samples[index]["box_xyxy"], again[index]["box_xyxy"])
    for other in (SyntheticObjects(9, "val", image_size=32, seed=1), SyntheticObjects(9, "train", image_size=32)):
        assert not np.array_equal(_pixels(samples, 0), _pixels(other, 0))


@pytest.mark.parametrize("size", [16, 64, 90])
def test_sample_and_render_agree(size):
    samples = SyntheticObjects(MAX_CLASSES, "val", image_size=size, num_classes=MAX_CLASSES)
    for index in range(0, MAX_CLASSES, 3):
        sample, rendered = samples[index], samples.render(index)
        assert sample["image"].shape == (3, size, size)
        assert rendered.mask.shape == (size, size)
        assert sample["label"] == rendered.label == index
        assert (sample["index"], sample["num_objects"], sample["image_hw"].tolist()) == (index, 1, [size, size])
        assert torch.equal(sample["box_xyxy"], rendered.box_xyxy)
        (y1, x1), (y2, x2) = rendered.mask.nonzero().amin(dim=0), rendered.mask.nonzero().amax(dim=0) + 1
        assert rendered.box_xyxy.tolist() == [x1, y1, x2, y2]
        assert rendered.class_name == samples.classes[index]
        assert f" {rendered.class_name} " in rendered.caption


def test_sizes_vary_and_many_objects_are_large():
    samples = SyntheticObjects(300, "train", image_size=32)
    boxes = torch.stack([samples.render(index).box_xyxy for index in range(300)])
    share = box_area(boxes) / 32**2
    assert (share > 0.25).float().mean() > 0.4
    assert share.quantile(0.1) < 0.15
    assert share.quantile(0.9) > 0.5


def test_the_mask_is_where_the_class_is_painted():
    """Two classes that differ in the pattern alone, same random numbers: images differ on the object, not around it."""
    striped = SyntheticObjects(8, "val", image_size=48, num_classes=8)
    spotted = SyntheticObjects(8, "val", image_size=48, num_classes=8)
    striped._cues = [(shape, "striped") for shape, _ in striped._cues]
    spotted._cues = [(shape, "spotted") for shape, _ in spotted._cues]
    for index in range(8):
        one, other = striped.render(index), spotted.render(index)
        difference = np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).sum(axis=2)
        assert torch.equal(one.mask, other.mask)
        inside, outside = difference[one.mask.numpy()], difference[~one.mask.numpy()]
        assert inside.mean() > 5
        assert np.mean(outside > 0) < 0.15  # the object's antialiased rim alone


def test_labels_are_balanced_and_backgrounds_independent_of_them():
    samples = SyntheticObjects(320, "train", image_size=16, num_classes=4)
    assert Counter(samples.labels.tolist()) == dict.fromkeys(range(4), 80)
    kinds = Counter((samples.render(i).label, samples.render(i).caption.split()[-2]) for i in range(320))
    assert len(kinds) == 16
    assert min(kinds.values()) >= 8  # expected 20


@pytest.mark.parametrize(
    "arguments",
    [{"split": "test"}, {"num_images": 0}, {"image_size": 8}, {"num_classes": 1}, {"num_classes": 41}, {"seed": -1}],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SyntheticObjects(**{"num_images": 4, "split": "train", **arguments})


def test_index_out_of_range():
    with pytest.raises(IndexError):
        SyntheticObjects(4, "train")[4]


def test_imagenet_layout_keeps_class_order(tmp_path):
    samples = SyntheticObjects(12, "val", image_size=32, num_classes=12)
    write_imagenet(samples, tmp_path)
    dataset = ImageNetDataset(tmp_path, "val", boxes=True)
    for index in range(12):
        assert torch.equal(dataset[index]["box_xyxy"], samples[index]["box_xyxy"])
        assert dataset[index]["label"] == samples[index]["label"]
        error = dataset[index]["image"].float() - samples[index]["image"].float()
        assert error.abs().mean() < 12  # JPEG


def test_voc_layout(tmp_path):
    samples = SyntheticObjects(5, "train", image_size=32, num_classes=5)
    write_voc(samples, tmp_path)
    devkit = tmp_path / "VOC2012"
    stems = (devkit / "ImageSets/Main/train.txt").read_text().split()
    for index, stem in enumerate(stems):
        rendered = samples.render(index)
        annotation = read_voc_xml(devkit / f"Annotations/{stem}.xml")
        x1, y1, x2, y2 = rendered.box_xyxy.tolist()
        assert annotation.objects[0] == (rendered.class_name.replace(" ", "_"), x1 + 1, y1 + 1, x2, y2)
        with Image.open(devkit / f"SegmentationClass/{stem}.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
            assert np.array_equal(np.asarray(image), rendered.mask.numpy() * (index + 1))
        with Image.open(devkit / f"JPEGImages/{stem}.jpg") as image:
            assert image.size == (32, 32)
    lines = (devkit / "ImageSets/Main/ringed_star_train.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["-1", "-1", "-1", "1", "-1"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools on numpy 2
def test_coco_layout(tmp_path):
    samples = SyntheticObjects(5, "val", image_size=32, num_classes=5)
    write_coco(samples, tmp_path)
    coco = COCO(tmp_path / "annotations/instances_val2017.json")
    captions = json.loads((tmp_path / "annotations/captions_val2017.json").read_text())["annotations"]
    for index, (annotation, caption) in enumerate(zip(coco.dataset["annotations"], captions, strict=True)):
        rendered = samples.render(index)
        assert np.array_equal(coco.annToMask(annotation), rendered.mask.numpy())
        x, y, width, height = annotation["bbox"]
        assert [x, y, x + width, y + height] == rendered.box_xyxy.tolist()
        assert coco.loadCats(annotation["category_id"])[0]["name"] == rendered.class_name
        assert caption == {"id": index + 1, "image_id": index + 1, "caption": rendered.caption}
        assert (tmp_path / "val2017" / coco.loadImgs(annotation["image_id"])[0]["file_name"]).is_file()
