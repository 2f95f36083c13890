"""VOC's devkit: lists, boxes in the package's frame, flags and masks against the synthetic truth; faults by name."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from last_vit.data.synthetic import SyntheticObjects, write_voc
from last_vit.data.voc import ImageAnnotation, ObjectBox, VocSplit, find_voc_folder, voc_boxes

COUNT = 5


def _samples(split="val"):
    return SyntheticObjects(COUNT, split, image_size=32, num_classes=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    for split in ("train", "val"):
        write_voc(_samples(split), root / "VOCdevkit")
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "voc")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("listing", ["Main", "Segmentation"])
def test_split_is_the_synthetic_truth(written, split, listing):
    samples, voc = _samples(split), VocSplit(written / "VOCdevkit" / "VOC2012", split, listing)
    assert len(voc) == COUNT
    for index in range(COUNT):
        rendered, objects = samples.render(index), voc.objects(index)
        assert objects.names == (rendered.class_name.replace(" ", "_"),)
        assert torch.equal(objects.boxes_xyxy, rendered.box_xyxy[None])
        assert objects.image_hw == (32, 32)
        assert objects.is_difficult.tolist() == objects.is_truncated.tolist() == [False]
        class_mask = voc.class_mask(index)
        assert class_mask.dtype == torch.uint8
        assert torch.equal(class_mask, rendered.mask * (rendered.label + 1))
        assert torch.equal(voc.object_mask(index), rendered.mask.to(torch.uint8))
        with Image.open(voc.image_path(index)) as image:
            error = np.abs(np.asarray(image, dtype=float) - np.asarray(rendered.image, dtype=float))
        assert error.mean() < 12  # JPEG


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_and_folders_above(written, place):
    assert find_voc_folder(written / place) == written / "VOCdevkit" / "VOC2012"


def test_corners_count_from_one_and_are_inclusive():
    objects = (ObjectBox("a", 1, 1, 60, 40), ObjectBox("b", 7, 3, 7, 3), ObjectBox("c", 0, 0.5, 5, 5))
    boxes = voc_boxes(ImageAnnotation(60, 40, objects, (False,) * 3, (False,) * 3))
    assert boxes.tolist() == [[0, 0, 60, 40], [6, 2, 7, 3], [0, 0, 5, 5]]
    assert voc_boxes(ImageAnnotation(60, 40, (), (), ())).shape == (0, 4)


def test_flags_and_several_objects(root):
    voc = VocSplit(root, "val")
    path = voc.folder / "Annotations" / f"{voc.stems[2]}.xml"
    text = path.read_text()
    element = text[text.index("<object>") : text.index("</object>") + len("</object>")]
    hard = element.replace("<difficult>0", "<difficult>1")
    cut = element.replace("<truncated>0", "<truncated>1").replace("<difficult>0</difficult>", "")
    path.write_text(text.replace(element, element + hard + cut))
    objects = voc.objects(2)
    assert objects.boxes_xyxy.shape == (3, 4)
    assert objects.is_difficult.tolist() == [False, True, False]
    assert objects.is_truncated.tolist() == [False, False, True]
    path.write_text(text.replace(element, ""))
    assert voc.objects(2).boxes_xyxy.shape == (0, 4)
    assert voc.objects(2).is_difficult.dtype == torch.bool


def test_wrong_root(root, tmp_path):
    for wrong, state in ((tmp_path / "absent", "does not exist"), (tmp_path, "holds no VOC images")):
        with pytest.raises(FileNotFoundError, match=rf"{wrong} {state}: expected VOC2007 or VOC2012"):
            VocSplit(wrong, "val")
    shutil.copytree(root / "VOCdevkit" / "VOC2012", root / "VOCdevkit" / "VOC2007")
    with pytest.raises(ValueError, match="holds VOC2007, VOC2012: give one of them"):
        VocSplit(root, "val")
    assert len(VocSplit(root / "VOCdevkit" / "VOC2007", "val")) == COUNT


def test_wrong_lists(root):
    with pytest.raises(FileNotFoundError, match=r"Main/test\.txt; lists there: train, val;"):
        VocSplit(root, "test")
    with pytest.raises(
        ValueError, match=r"listing must be one of Main, Segmentation, SegmentationContext, got 'Layout'"
    ):
        VocSplit(root, "val", "Layout")
    class_list = next((root / "VOCdevkit/VOC2012/ImageSets/Main").glob("*_val.txt")).stem
    with pytest.raises(ValueError, match="one class's presence; take a split"):
        VocSplit(root, class_list)
    path = root / "VOCdevkit/VOC2012/ImageSets/Main/val.txt"
    lines = path.read_text()
    path.write_text(lines + lines.splitlines()[1] + "\n")
    with pytest.raises(ValueError, match=r"val\.txt names 2009_000001 2 times"):
        VocSplit(root, "val")
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt is empty"):
        VocSplit(root, "val")


def test_missing_files(root):
    voc = VocSplit(root, "val")
    (voc.folder / "Annotations" / f"{voc.stems[0]}.xml").unlink()
    (voc.folder / "SegmentationClass" / f"{voc.stems[0]}.png").unlink()
    for read in (voc.objects, voc.class_mask):
        with pytest.raises(FileNotFoundError, match=voc.stems[0]):
            read(0)
    voc.image_path(3).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of the 5 images.*{voc.stems[3]}\.jpg"):
        VocSplit(root, "val")
