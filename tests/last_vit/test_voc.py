"""VOC's devkit: lists, boxes in the package's frame and masks against the synthetic truth; XML and faults by name."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from last_vit.data.synthetic import SyntheticObjects, write_voc
from last_vit.data.voc import ImageAnnotation, ObjectBox, VocSplit, find_voc_folder, read_voc_xml, voc_boxes

COUNT = 5
SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


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


@pytest.mark.parametrize(("split", "listing"), [("train", "Main"), ("val", "Segmentation")])
def test_split_is_the_synthetic_truth(written, split, listing):
    samples, voc = _samples(split), VocSplit(written / "VOCdevkit" / "VOC2012", split, listing)
    assert len(voc) == COUNT
    for index in range(COUNT):
        rendered = samples.render(index)
        annotation = read_voc_xml(voc.folder / "Annotations" / f"{voc.stems[index]}.xml")
        assert [each.name for each in annotation.objects] == [rendered.class_name.replace(" ", "_")]
        assert torch.equal(voc_boxes(annotation), rendered.box_xyxy[None])
        assert (annotation.height, annotation.width) == (32, 32)
        assert torch.equal(voc.class_mask(index), (rendered.mask * (rendered.label + 1)).to(torch.uint8))
        assert torch.equal(voc.object_mask(index), rendered.mask.to(torch.uint8))
        with Image.open(voc.image_path(index)) as image:
            error = np.abs(np.asarray(image, dtype=float) - np.asarray(rendered.image, dtype=float))
        assert error.mean() < 12  # JPEG


def test_root_and_folders_above(written):
    for place in (".", "VOCdevkit", "VOCdevkit/VOC2012"):
        assert find_voc_folder(written / place) == written / "VOCdevkit" / "VOC2012"


def test_corners_count_from_one_and_are_inclusive():
    objects = (ObjectBox("a", 1, 1, 60, 40), ObjectBox("b", 7, 3, 7, 3), ObjectBox("c", 0, 0.5, 5, 5))
    boxes = voc_boxes(ImageAnnotation(60, 40, objects))
    assert boxes.tolist() == [[0, 0, 60, 40], [6, 2, 7, 3], [0, 0, 5, 5]]
    assert voc_boxes(ImageAnnotation(60, 40, ())).shape == (0, 4)


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
    with pytest.raises(ValueError, match=r"listing must be one of Main, Segmentation, .*got 'Layout'"):
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


def test_a_list_that_begins_with_a_byte_order_mark(root):
    path = root / "VOCdevkit/VOC2012/ImageSets/Main/val.txt"
    stems = VocSplit(root, "val").stems
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert VocSplit(root, "val").stems == stems


def test_missing_files(root):
    voc = VocSplit(root, "val")
    (voc.folder / "SegmentationClass" / f"{voc.stems[0]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=voc.stems[0]):
        voc.class_mask(0)
    voc.image_path(3).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of the 5 images.*{voc.stems[3]}\.jpg"):
        VocSplit(root, "val")


def _object(xmin, ymin, xmax, ymax, name="n1"):
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


@pytest.fixture
def write(tmp_path):
    def _write(body, head=""):
        path = tmp_path / "image_7.xml"
        path.write_text(f"{head}<annotation>{body}</annotation>")
        return path

    return _write


def test_what_counts_as_an_object_and_how_it_is_clipped(write):
    part = "<part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"
    with_part = _object(1, 2, 30, 20).replace("<bndbox>", part + "<bndbox>", 1)
    over_the_border, one_pixel = _object(-5, 10, 70, 45), _object(59, 10, 59, 20)
    found = read_voc_xml(write(SIZE + with_part + over_the_border + one_pixel))
    assert (found.width, found.height) == (60, 40)
    assert found.objects[0] == ObjectBox("n1", 1, 2, 30, 20)
    assert [box[1:] for box in found.objects[1:]] == [(0, 10, 60, 40), (59, 10, 59, 20)]
    assert read_voc_xml(write(SIZE)).objects == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "size/width> is missing"),
        (SIZE.replace("60", "0"), "not positive"),
        (SIZE.replace("60", "wide"), "not a number"),
        (SIZE + "<object><name>n1</name></object>", "bndbox/xmin> is missing"),
        (SIZE + _object(1, 2, 3, 4, name=" "), "no name"),
        *[
            (SIZE + _object(*corners), "nothing inside the 60 x 40 image")
            for corners in ((70, 10, 80, 20), (-9, 10, -2, 20), (30, 10, 20, 20), ("nan", 1, 2, 3))
        ],
    ],
)
def test_faulty_annotations_are_named(write, body, message):
    with pytest.raises(ValueError, match=rf"image_7\.xml.*{message}"):
        read_voc_xml(write(body))


def test_entity_bomb_is_refused(write):
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 9))
    bomb = f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{entities}]>'
    with pytest.raises(ValueError, match=r"image_7\.xml defines XML entities"):
        read_voc_xml(write(SIZE + "<folder>&e8;</folder>", head=bomb))


def test_what_is_not_xml_is_named(tmp_path):
    for name, content in [("a.xml", b"\xff\xd8\xff\xe0 a jpeg"), ("b.xml", b""), ("c.xml", b"<annotation><size>")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not readable XML"):
            read_voc_xml(tmp_path / name)
