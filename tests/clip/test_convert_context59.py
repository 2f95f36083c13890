"""convert_context59.py on files in the format of trainval_merged.json, written with pycocotools' own run lengths."""

import json

import convert_context59
import numpy as np
import pytest
from seg_parts import HW, read, save_image
from seg_sets import SegmentationSet
from seg_settings import display_names

mask_tools = pytest.importorskip("pycocotools.mask")


def region(image_id, category_id, rows, columns):
    mask = np.zeros(HW, dtype=np.uint8, order="F")
    mask[rows, columns] = 1
    code = mask_tools.encode(mask)
    code["counts"] = code["counts"].decode()
    return {"id": 1, "image_id": image_id, "category_id": category_id, "segmentation": code, "iscrowd": 0}


def content():
    phases = {20080000002: "val", 20080000007: "train", 20080000003: "val", 20080000004: "test"}
    return {
        "info": {},
        "images": [
            {"image_id": i, "file_name": f"2008_{i % 1000000:06d}.jpg", "height": HW[0], "width": HW[1], "phase": phase}
            for i, phase in phases.items()
        ],
        "annos_segmentation": [
            region(20080000002, 440, slice(None), slice(None)),
            region(20080000002, 284, slice(1, 3), slice(0, 4)),
            region(20080000002, 2, slice(2, 4), slice(2, 6)),
            region(20080000007, 458, slice(0, 2), slice(None)),
            region(20080000004, 458, slice(0, 2), slice(None)),
        ],
        "categories": [],
        "annos_boundary": [],
    }


def write(folder, change=lambda entries: None):
    entries = content()
    change(entries)
    path = folder / "trainval_merged.json"
    path.write_text(json.dumps(entries))
    return path


def run(path, output, *flags):
    convert_context59.main(["--json", str(path), "--output", str(output), "--num-workers", "1", *flags])


def test_maps_and_lists(tmp_path, capsys):
    voc = tmp_path / "VOC2010"
    run(write(tmp_path), voc, "--any-count")
    label, mode = read(voc / "SegmentationClassContext/2008_000002.png")
    expected = np.full(HW, display_names("context60").index("wall"), dtype=np.uint8)
    expected[1:3, 0:4] = display_names("context60").index("person")
    expected[2:4, 2:6] = display_names("context60").index("aeroplane")  # later regions cover earlier ones
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
    assert sets["context59"].label(0).unique().tolist() == [0, 36, 55]
    assert sets["context59"].label(1).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("annos_segmentation"), "lacks one of its lists; expected trainval_merged.json"),
        (lambda e: e["images"][1].pop("phase"), "images[1] has no phase; expected"),
        (lambda e: e["images"][0].update(height=0), "images[0]: height and width are (0, 6)"),
        (lambda e: e["images"].append(e["images"][0]), "lists 5 images, but 4 different image_ids"),
        (
            lambda e: e["annos_segmentation"][1].update(category_id=3),
            "annos_segmentation[1]: category 3 is none of the",
        ),
        (lambda e: e["annos_segmentation"][2].update(image_id=5), "annos_segmentation[2]: image 5 is not in the list"),
        (
            lambda e: e["annos_segmentation"][0]["segmentation"].update(size=[1, 1]),
            "2008_000002.jpg: region of category 440: run lengths of a mask of size [1, 1]",
        ),
    ],
)
def test_malformed_files(change, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(write(tmp_path, change), tmp_path / "out", "--any-count")
    assert message in capsys.readouterr().err


def test_other_files_and_counts(tmp_path, capsys):
    write(tmp_path)
    (tmp_path / "text.json").write_text("no JSON")
    for name, message in (
        ("trainval_merged.json", "context59 train: found 1 files (the official set has 4996)"),
        ("text.json", "is not readable JSON"),
        ("absent.json", "No such file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / name, tmp_path / "out")
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
