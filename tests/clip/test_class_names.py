"""Class names: every form in which people have them, the order they come in, and what is refused."""

import json

import open_clip
import pytest
from class_names import find_class_names, flatten_names, imagenet_class_names, read_class_names

from last_vit.names import imagenet_synsets


@pytest.fixture
def written(tmp_path):
    def write(text, name="names.txt", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("person, man\ntv, television monitor\n", (("person", "man"), ("tv", "television monitor"))),  # SCLIP
        ("person,man\ntree\n", (("person", "man"), ("tree",))),  # ClearCLIP
        ("person;man in shirt, blue\ntree\n", (("person", "man in shirt, blue"), ("tree",))),  # ProxyCLIP
        ("  traffic   light \r\nfire-hydrant\r\n", (("traffic light",), ("fire-hydrant",))),
        ("\ufeffcafé\nfjäll\n", (("café",), ("fjäll",))),
        ("a line separator\u2028within\n", (("a line separator within",),)),
    ],
)
def test_lines(written, text, expected):
    assert read_class_names(written(text), len(expected)) == expected


def test_keyed_files_follow_the_folders(written):
    mapping = written("n02 bad\n".replace("n02", "n00000002") + "n00000001 tench, Tinca tinca\nn00000003 x\n")
    assert read_class_names(mapping, 2, ["n00000001", "n00000002"]) == (("tench", "Tinca tinca"), ("bad",))
    plain = written(json.dumps(["door, double door", ["person", "man"]]), "names.json")
    assert read_class_names(plain) == (("door, double door",), ("person", "man"))
    content = written(json.dumps({"b": ["second", "2nd"], "a": "first"}), "names.json")
    assert read_class_names(content, 2, ["a", "b"]) == (("first",), ("second", "2nd"))
    numbers = written("10 tench, Tinca\n2 goldfish\n0 shark\n")  # also of a text file's classes that are numbers
    assert read_class_names(numbers, 2, ["2", "10"]) == (("goldfish",), ("tench", "Tinca"))
    with pytest.raises(ValueError, match="2 of the 3 class folders are not in it, for example 'c'"):
        read_class_names(content, folders=["a", "c", "d"])
    with pytest.raises(ValueError, match="keyed by class folders"):
        read_class_names(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\n\n", "line 3 is blank"),
        ("", "line 1 is blank"),
        ("cat, \n", "line 1 has an empty name"),
        ("person, man\ndog;Man\n", "'Man' stands in line 1 and in line 2"),
        ("person, person\n", "'person' stands in line 1 and in line 1"),
        ("cat\ndog\nbird\n", "it names 3 classes, the data has 2"),
        ("n00000001 a\nn00000001 b\n", "'n00000001' stands twice, in line 1 and line 2"),
        ("JSON cat\n", "not JSON"),
        ('JSON "cat"', "expected a list of classes"),
        ('JSON ["cat", []]', "entry 2 must be a name"),
        ('JSON ["cat", ""]', "entry 2 has an empty name"),
        ('JSON ["cat", ["dog", "CAT"]]', "'CAT' stands in entry 1 and in entry 2"),
        ('JSON {"a": "cat", "a": "dog"}', "class folder 'a' stands twice"),
    ],
)
def test_faulty_files(written, text, message):
    path = written(text.removeprefix("JSON "), "names.json" if text.startswith("JSON ") else "names.txt")
    with pytest.raises(ValueError, match=message) as caught:
        read_class_names(path, 2 if "names 3" in message else None, ["n00000001"])
    assert str(path) in str(caught.value)


def test_other_encodings_and_no_file(written, tmp_path):
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 3\)"):
        read_class_names(written("café\n", encoding="latin-1"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        read_class_names(tmp_path / "nowhere.txt")


def test_imagenet_is_open_clips_list_in_the_order_of_the_labels():
    wnids = imagenet_synsets()
    assert list(wnids) == sorted(wnids)
    assert (len(wnids), wnids[0], wnids[-1]) == (1000, "n01440764", "n15075141")
    names, class_of_name = flatten_names(imagenet_class_names(wnids))
    assert names == list(open_clip.IMAGENET_CLASSNAMES)
    assert class_of_name == list(range(1000))
    assert imagenet_class_names([str(label) for label in range(1000)]) == imagenet_class_names(wnids)  # ImageNetV2
    # a subset in any order; known folders of the official mapping
    known = {"n01443537": "goldfish", "n02129165": "lion", "n04146614": "school bus", "n07753592": "banana"}
    assert imagenet_class_names(list(known)) == tuple((name,) for name in known.values())
    with pytest.raises(ValueError, match="'n99999999' is none of"):
        imagenet_class_names(["n01443537", "n99999999"])


def test_where_names_come_from(written):
    path = written("gold\nlion\n")
    assert find_class_names(None, ["n01443537"]) == (("goldfish",),)
    assert find_class_names("imagenet", ["n01443537"]) == (("goldfish",),)
    assert find_class_names("folders", ["red_panda", "cat"]) == (("red panda",), ("cat",))
    assert find_class_names(path, ["n01443537", "n02129165"]) == (("gold",), ("lion",))
    with pytest.raises(ValueError, match="'cat', are not ImageNet's"):
        find_class_names(None, ["cat", "n01443537"])
    with pytest.raises(ValueError, match="names 2 classes, the data has 1"):
        find_class_names(path, ["cat"])
    with pytest.raises(ValueError, match="folder 'a_b' and in folder 'a b'"):
        find_class_names("folders", ["a_b", "a b"])
