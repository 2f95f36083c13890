"""The XML reader: what it reads, clips and refuses."""

import pytest

from last_vit.data.voc import ObjectBox, read_voc_xml

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


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


def test_reads_size_and_objects_in_order(write):
    annotation = read_voc_xml(write(SIZE + _object(1, 2, 30, 20) + _object(0.5, 0, 59, 39, "n2")))
    assert (annotation.width, annotation.height) == (60, 40)
    assert annotation.objects == (ObjectBox("n1", 1, 2, 30, 20), ObjectBox("n2", 0.5, 0, 59, 39))


def test_parts_of_an_object_are_not_objects(write):
    part = "<part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"
    with_part = _object(1, 2, 30, 20).replace("<bndbox>", part + "<bndbox>", 1)
    assert read_voc_xml(write(SIZE + with_part)).objects == (ObjectBox("n1", 1, 2, 30, 20),)


def test_no_objects_is_an_annotation(write):
    assert read_voc_xml(write(SIZE)).objects == ()


def test_box_over_the_border_is_clipped(write):
    (box,) = read_voc_xml(write(SIZE + _object(-5, 10, 70, 45))).objects
    assert box[1:] == (0, 10, 60, 40)


def test_one_pixel_box_is_kept(write):
    (box,) = read_voc_xml(write(SIZE + _object(59, 10, 59, 20))).objects
    assert box[1:] == (59, 10, 59, 20)


@pytest.mark.parametrize(
    "corners", [(70, 10, 80, 20), (-9, 10, -2, 20), (30, 10, 20, 20), (10, 40, 20, 50), ("nan", 1, 2, 3)]
)
def test_box_with_nothing_inside_is_refused(write, corners):
    with pytest.raises(ValueError, match=r"image_7\.xml.*nothing inside the 60 x 40 image"):
        read_voc_xml(write(SIZE + _object(*corners)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "size/width> is missing"),
        (SIZE.replace("60", "0"), "not positive"),
        (SIZE.replace("60", "wide"), "not a number"),
        (SIZE + "<object><name>n1</name></object>", "bndbox/xmin> is missing"),
        (SIZE + _object(1, 2, 3, 4, name=" "), "no name"),
    ],
)
def test_incomplete_annotations_are_named(write, body, message):
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
    with pytest.raises(FileNotFoundError):
        read_voc_xml(tmp_path / "absent.xml")
