"""Pairs by name: unique names wherever they lie, equal names by their folders, the rest refused."""

from pathlib import Path, PurePath

import pytest

from last_vit.data.image_files import list_files, pair_by_name


def _pair(images, annotations, with_ending=False):
    return pair_by_name([PurePath(p) for p in images], [PurePath(p) for p in annotations], with_ending)


def test_unique_names_pair_wherever_they_lie():
    assert _pair(["a/1.jpg", "b/2.png", "3.jpg"], ["x/y/2.xml", "1.xml", "4.xml"]) == [1, 0, None]


def test_endings_count_only_where_asked():
    assert _pair(["1.v2.jpg"], ["1.v2.xml"]) == [0]
    assert _pair(["1.jpg", "2.jpg"], ["1.png", "2.jpg"], with_ending=True) == [None, 1]
    assert _pair(["1.jpg"], ["1.png"]) == [0]


def test_folders_decide_between_equal_names():
    images = ["bear/0.jpg", "cat/0.jpg", "dog/0.jpg"]
    assert _pair(images, ["cat/0.png", "dog/0.png", "fox/0.png"]) == [None, 0, 1]
    assert _pair(["train2017/7.jpg", "val2017/7.jpg"], ["val2017/7.jpg"], with_ending=True) == [None, 0]
    assert _pair(["7.jpg"], ["train2017/7.jpg", "8.jpg"], with_ending=True) == [0]


@pytest.mark.parametrize(
    ("images", "annotations", "match"),
    [
        (["1.jpg", "1.png"], ["1.xml"], r"annotation 1\.xml fits images 1\.jpg and 1\.png: names must be unique"),
        (["a/1.jpg", "b/1.jpg"], ["1.xml"], r"annotation 1\.xml fits images a/1\.jpg and b/1\.jpg"),
        (["1.jpg"], ["1.npy", "1.png"], r"image 1\.jpg fits annotations 1\.npy and 1\.png"),
        (["1.jpg"], ["a/1.xml", "b/1.xml"], r"image 1\.jpg fits annotations a/1\.xml and b/1\.xml"),
    ],
)
def test_ambiguous_names_are_refused(images, annotations, match):
    with pytest.raises(ValueError, match=match):
        _pair(images, annotations)


def test_listing_is_deep_sorted_and_visible_only(tmp_path):
    for name in ("b.JPG", "a/c.jpg", "a/.hidden.jpg", ".cache/d.jpg", "a/e.txt", "real/f.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "images" / "real").rename(tmp_path / "elsewhere")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    found = list_files(tmp_path / "images", (".jpg",))
    assert [path.relative_to(tmp_path / "images") for path in found] == [
        Path("a/c.jpg"),
        Path("b.JPG"),
        Path("linked/f.jpg"),
    ]
