"""The converters of COCO-Stuff, COCO-Object, Cityscapes and PASCAL-Context on files in the official formats."""

import json
import os
import signal

import convert_cityscapes
import convert_coco_object
import convert_coco_stuff
import convert_context59
import label_conversion
import numpy as np
import pytest
from seg_parts import HW, make_cityscapes, make_coco, read, save_image, save_label
from seg_sets import SegmentationSet
from seg_settings import display_names

RAW = [0, 12, 89, 91, 181, 255]
RESULTS = {
    convert_coco_stuff: ("_labelTrainIds.png", [0, 11, 79, 80, 170, 255]),
    convert_coco_object: ("_instanceTrainIds.png", [1, 12, 80, 0, 0, 0]),
}
COCO_TOOLS = pytest.mark.parametrize("tool", list(RESULTS), ids=lambda tool: tool.__name__)
CITY_SUFFIX = "_gtFine_labelTrainIds.png"


PART = ("--any-count", "--num-workers", 0)


def run(tool, *arguments):
    tool.main([str(argument) for argument in (*PART, *arguments)])


@COCO_TOOLS
@pytest.mark.parametrize("folder", ["stuffthingmaps/{}", "annotations/{}", "{}"])
def test_raw_maps_of_coco_wherever_they_lie(tool, folder, tmp_path, capsys):
    for split in ("train2017", "val2017"):
        make_coco(tmp_path / "in", {"7": RAW}, folder.format(split), images=f"images/{split}")
    run(tool, "--root", tmp_path / "in", "--output", tmp_path / "out", "--split", "train", "val")
    suffix, classes = RESULTS[tool]
    for split in ("train2017", "val2017"):
        (path,) = (tmp_path / "out/annotations" / split).iterdir()
        assert path.name == f"7{suffix}"
        assert read(path)[0].flatten()[:6].tolist() == classes
    assert not list((tmp_path / "in").rglob("*TrainIds.png"))
    printed = capsys.readouterr().out
    assert "train: 1 files found (the official set has 118287), 1 converted: 1 now, 0 before" in printed
    assert "val: 1 files found (the official set has 5000), 1 converted" in printed


@COCO_TOOLS
def test_coco_beside_the_raw_maps_and_again_and_what_is_refused(tool, tmp_path, capsys, refused):
    root = make_coco(tmp_path, {"7": RAW}, "annotations/val2017")
    for _ in range(2):  # the second run must not take the first one's files for raw maps
        run(tool, "--root", root, "--output", root)
    assert sorted(path.name for path in (root / "annotations/val2017").iterdir()) == ["7.png", f"7{RESULTS[tool][0]}"]
    assert "1 converted: 0 now, 1 before" in capsys.readouterr().out
    make_coco(tmp_path / "bad", {"7": [0, 11]})
    for message, *arguments in (
        ("no raw maps (*.png) in", *PART, "--root", tmp_path / "absent"),
        ("7.png: it holds the ids 11,", *PART, "--root", tmp_path / "bad"),
        ("found 1 files (the official set has 5000)", "--root", root),
    ):
        assert message in refused(tool.main, *arguments, "--output", tmp_path / "out")


def test_a_stopped_run_goes_on_and_loading_processes_fail_in_one_line(tmp_path, capsys, monkeypatch, refused):
    root = make_coco(tmp_path, {str(stem): [stem, 91] for stem in range(5)})
    broken, written = root / "stuffthingmaps/val2017/3.png", tmp_path / "out/annotations/val2017"
    content = broken.read_bytes()
    broken.write_bytes(b"broken")
    arguments = ["--root", root, "--output", tmp_path / "out"]
    assert "3.png cannot be read" in refused(convert_coco_stuff.main, *PART, *arguments)
    times = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    assert [path.stem[:1] for path in sorted(times)] == ["0", "1", "2"]
    broken.write_bytes(content)
    run(convert_coco_stuff, *arguments)
    assert "5 converted: 2 now, 3 before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    min(times).write_bytes(b"old")
    run(convert_coco_stuff, *arguments, "--overwrite")
    assert read(min(times))[0].shape == HW
    save_label(broken, [11])
    command = [convert_coco_stuff.main, *PART, *arguments, "--overwrite", "--num-workers", 2]
    assert "3.png: it holds the ids 11," in refused(*command)
    monkeypatch.setattr(label_conversion, "look_up", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    error = refused(*command)
    assert "convert_coco_stuff.py: error: DataLoader worker (pid" in error
    assert "Fewer loading processes need less" in error


def test_coco_objects_from_instances(tmp_path, capsys, refused):
    """A small cat on a large person above a crowd, and an image without objects; then files that do not fit."""

    def polygon(x1, y1, x2, y2):
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]

    crowd = {"size": list(HW), "counts": [0, HW[0] * HW[1]]}
    objects = [
        (17, polygon(1, 1, 3, 3), [1, 1, 2, 2], 0),
        (1, polygon(0, 0, 5, 3), [0, 0, 5, 3], 0),
        (90, crowd, [0, 0, HW[1], HW[0]], 1),
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]} for i in (7, 8)],
        "categories": [{"id": i, "name": name} for i, name in ((1, "person"), (17, "cat"), (90, "toothbrush"))],
        "annotations": [
            {"id": index, "image_id": 7, "category_id": category, "segmentation": shape, "bbox": box, "iscrowd": crowd}
            for index, (category, shape, box, crowd) in enumerate(objects)
        ],
    }
    path = tmp_path / "instances_val2017.json"
    path.write_text(json.dumps(content))
    run(convert_coco_object, "--instances", path, "--output", tmp_path)
    expected = np.full(HW, 80, dtype=np.uint8)
    expected[:3, :5] = 1
    expected[1:3, 1:3] = 16
    assert np.array_equal(read(tmp_path / "annotations/val2017/7_instanceTrainIds.png")[0], expected)
    assert not read(tmp_path / "annotations/val2017/8_instanceTrainIds.png")[0].any()
    assert "2 files found (the official set has 5000), 2 converted: 2 now" in capsys.readouterr().out
    command = [convert_coco_object.main, *PART, "--instances", path, "--output", tmp_path]
    assert "one file of one --split" in refused(*command, "--split", "train", "val")
    assert "not allowed with argument" in refused(*command, "--root", tmp_path)
    path.write_text(path.read_text().replace('"id": 90, "name"', '"id": 91, "name"'))
    path.write_text(path.read_text().replace('"category_id": 90', '"category_id": 91'))
    assert "category 91 (toothbrush) is none of COCO's 80" in refused(*command)


def test_cityscapes_label_ids(tmp_path, capsys, refused):
    root = make_cityscapes(tmp_path / "in", {"ulm/a": [7, 8, 9, 33], "bonn/b": [0, 26]})
    run(convert_cityscapes, "--root", root, "--output", tmp_path / "out")
    folder = tmp_path / "out/gtFine/val"
    assert read(folder / f"ulm/a{CITY_SUFFIX}")[0].flatten()[:5].tolist() == [0, 1, 255, 18, 18]
    assert read(folder / f"bonn/b{CITY_SUFFIX}")[0].flatten()[:2].tolist() == [255, 13]
    assert not list(root.rglob(f"*{CITY_SUFFIX}"))
    assert "cityscapes val: 2 files found (the official set has 500), 2 converted: 2 now" in capsys.readouterr().out
    run(convert_cityscapes, "--root", root, "--output", root)  # beside the sources, as mmsegmentation wants them
    assert len(list((root / "gtFine/val").glob(f"*/*{CITY_SUFFIX}"))) == 2
    train = ["--root", root, "--output", root, "--split", "train"]
    assert "no *_gtFine_labelIds.png below" in refused(convert_cityscapes.main, *train)


@pytest.fixture
def context(tmp_path):
    """A function that writes trainval_merged.json, changed, with pycocotools' own run lengths."""
    mask_tools = pytest.importorskip("pycocotools.mask")

    def region(image_id, category_id, rows, columns):
        mask = np.zeros(HW, dtype=np.uint8, order="F")
        mask[rows, columns] = 1
        code = {"size": list(HW), "counts": mask_tools.encode(mask)["counts"].decode()}
        return {"id": 1, "image_id": image_id, "category_id": category_id, "segmentation": code, "iscrowd": 0}

    def write(change=lambda entries: None):
        phases = {20080000002: "val", 20080000007: "train", 20080000003: "val", 20080000004: "test"}
        size = {"height": HW[0], "width": HW[1]}
        entries = {
            "images": [
                {"image_id": i, "file_name": f"2008_{i % 1000000:06d}.jpg", "phase": phase, **size}
                for i, phase in phases.items()
            ],
            "annos_segmentation": [
                region(20080000002, 440, slice(None), slice(None)),
                region(20080000002, 284, slice(1, 3), slice(0, 4)),
                region(20080000002, 2, slice(2, 4), slice(2, 6)),
                region(20080000007, 458, slice(0, 2), slice(None)),
                region(20080000004, 458, slice(0, 2), slice(None)),
            ],
        }
        change(entries)
        path = tmp_path / "trainval_merged.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_context_maps_and_lists(context, tmp_path, capsys):
    voc = tmp_path / "VOC2010"
    run(convert_context59, "--json", context(), "--output", voc)
    label, mode = read(voc / "SegmentationClassContext/2008_000002.png")
    classes = display_names("context60")
    expected = np.full(HW, classes.index("wall"), dtype=np.uint8)
    expected[1:3, 0:4] = classes.index("person")
    expected[2:4, 2:6] = classes.index("aeroplane")  # later regions cover earlier ones
    assert mode == "L"
    assert np.array_equal(label, expected)
    assert not read(voc / "SegmentationClassContext/2008_000003.png")[0].any()
    lists = voc / "ImageSets/SegmentationContext"
    assert (lists / "val.txt").read_text() == "2008_000002\n2008_000003\n"
    assert (lists / "train.txt").read_text() == "2008_000007\n"
    assert len(list((voc / "SegmentationClassContext").iterdir())) == 3
    printed = capsys.readouterr().out
    assert "context59 train: 1 files found (the official set has 4996), 1 converted" in printed
    assert "context59 val: 2 files found (the official set has 5104), 2 converted" in printed
    for stem in ("2008_000002", "2008_000003"):
        save_image(voc / "JPEGImages" / f"{stem}.jpg")
    sets = {name: SegmentationSet(name, voc, any_count=True) for name in ("context59", "context60")}
    assert sets["context60"].label(0).unique().tolist() == [1, 37, 56]
    assert [sets["context59"].label(i).unique().tolist() for i in (0, 1)] == [[0, 36, 55], [255]]


def test_malformed_context_files(context, tmp_path, refused):
    command = [convert_context59.main, "--output", tmp_path / "out", "--json"]
    assert "context59 train: found 1 files (the official set has 4996)" in refused(*command, context())
    assert "absent.json; expected trainval_merged.json" in refused(*command, tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("no JSON")
    assert "is not readable JSON" in refused(*command, tmp_path / "text.json")
    for change, message in (
        (lambda e: e.pop("annos_segmentation"), "has no list annos_segmentation; expected trainval_merged"),
        (lambda e: e["images"][1].pop("phase"), "images[1] has no phase; expected"),
        (lambda e: e["images"][0].update(height=0), "images[0]: height and width are (0, 6)"),
        (lambda e: e["images"].append(e["images"][0]), "lists 5 images, but 4 different image_ids"),
        (lambda e: e["annos_segmentation"][1].update(category_id=3), "[1]: category 3 is none of the"),
        (lambda e: e["annos_segmentation"][2].update(image_id=5), "[2]: image 5 is not in the list"),
    ):
        assert message in refused(*command, context(change))
    assert not (tmp_path / "out").exists()
    size = context(lambda e: e["annos_segmentation"][0]["segmentation"].update(size=[1, 1]))
    assert "2008_000002.jpg: region of category 440: run lengths of a mask of size [1, 1]" in refused(
        *command, size, *PART
    )
