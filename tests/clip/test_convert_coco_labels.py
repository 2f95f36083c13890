"""COCO-Stuff's and COCO-Object's converters on files in the official layouts."""

import json

import convert_coco_object
import convert_coco_stuff
import numpy as np
import pytest
from seg_parts import HW, make_coco, read

RAW = [0, 12, 89, 91, 181, 255]
RESULTS = {
    convert_coco_stuff: ("_labelTrainIds.png", [0, 11, 79, 80, 170, 255]),
    convert_coco_object: ("_instanceTrainIds.png", [1, 12, 80, 0, 0, 0]),
}
TOOLS = pytest.mark.parametrize("tool", list(RESULTS), ids=lambda tool: tool.__name__)


def run(tool, *arguments):
    tool.main([str(argument) for argument in (*arguments, "--any-count", "--num-workers", 1)])


@TOOLS
@pytest.mark.parametrize("folder", ["stuffthingmaps/{}", "annotations/{}", "{}"])
def test_raw_maps_wherever_they_lie(tool, folder, tmp_path, capsys):
    for split in ("train2017", "val2017"):
        make_coco(tmp_path / "in", {"7": RAW}, folder.format(split), images=f"images/{split}")
    run(tool, "--root", tmp_path / "in", "--output", tmp_path / "out", "--split", "train", "val")
    suffix, classes = RESULTS[tool]
    for split in ("train2017", "val2017"):
        files = list((tmp_path / "out/annotations" / split).iterdir())
        assert [path.name for path in files] == [f"7{suffix}"]
        assert read(files[0])[0].flatten()[:6].tolist() == classes
    assert not list((tmp_path / "in").rglob("*TrainIds.png"))
    printed = capsys.readouterr().out
    assert "train: 1 files found (the official set has 118287), 1 converted: 1 now, 0 before" in printed
    assert "val: 1 files found (the official set has 5000), 1 converted" in printed


@TOOLS
def test_beside_as_mmsegmentation_does_and_again(tool, tmp_path, capsys):
    root = make_coco(tmp_path, {"7": RAW}, "annotations/val2017")
    for _ in range(2):  # the second run must not take the first one's files for raw maps
        run(tool, "--root", root, "--beside")
    assert sorted(path.name for path in (root / "annotations/val2017").iterdir()) == ["7.png", f"7{RESULTS[tool][0]}"]
    assert "1 converted: 0 now, 1 before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run(tool, "--root", root, "--output", root)
    assert "is the folder of the source files" in capsys.readouterr().err


@TOOLS
def test_errors_end_in_one_line(tool, tmp_path, capsys):
    root = make_coco(tmp_path / "in", {"7": [0, 11]})
    for arguments, message in (
        (["--root", tmp_path / "absent", "--output", tmp_path / "out"], "no raw maps (*.png) in"),
        (["--root", root, "--output", tmp_path / "out"], "7.png: it holds the ids 11,"),
        (["--root", root], "one of the arguments --output --beside is required"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(tool, *arguments)
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--root", str(root), "--output", str(tmp_path / "out")])
    assert "found 1 files (the official set has 5000)" in capsys.readouterr().err


@pytest.fixture
def instances(tmp_path):
    """One image with a large person, a small cat on it, a crowd below, and one image without objects."""

    def polygon(x1, y1, x2, y2):
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]

    objects = [(17, polygon(1, 1, 3, 3), [1, 1, 2, 2], 0), (1, polygon(0, 0, 5, 3), [0, 0, 5, 3], 0)]
    crowd = {"size": list(HW), "counts": [0, HW[0] * HW[1]]}
    objects.append((90, crowd, [0, 0, HW[1], HW[0]], 1))
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
    return path


def test_objects_from_instances(instances, tmp_path, capsys):
    run(convert_coco_object, "--instances", instances, "--output", tmp_path)
    folder = tmp_path / "annotations/val2017"
    expected = np.full(HW, 80, dtype=np.uint8)
    expected[:3, :5] = 1
    expected[1:3, 1:3] = 16
    assert np.array_equal(read(folder / "7_instanceTrainIds.png")[0], expected)
    assert not read(folder / "8_instanceTrainIds.png")[0].any()
    assert "2 files found (the official set has 5000), 2 converted: 2 now" in capsys.readouterr().out


def test_instances_that_do_not_fit(instances, tmp_path, capsys):
    for arguments, message in (
        (["--beside"], "needs an --output"),
        (["--output", tmp_path, "--split", "train", "val"], "one file of one --split"),
        (["--output", tmp_path, "--root", tmp_path], "not allowed with argument"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(convert_coco_object, "--instances", instances, *arguments)
        assert message in capsys.readouterr().err
    instances.write_text(instances.read_text().replace('"id": 90, "name"', '"id": 91, "name"'))
    instances.write_text(instances.read_text().replace('"category_id": 90', '"category_id": 91'))
    with pytest.raises(SystemExit, match="2"):
        run(convert_coco_object, "--instances", instances, "--output", tmp_path)
    assert "category 91 (toothbrush) is none of COCO's 80" in capsys.readouterr().err
