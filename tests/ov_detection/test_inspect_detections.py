"""What is matched, and the pictures of it; the dump that they are from is that of test_rescore.py."""

from pathlib import Path

import detection_figures
import inspect_detections
import numpy as np
import pytest
from detection_ap import ImageDetections, detection_ap, match_boxes
from detection_dump import Dump, DumpWriter
from detection_figures import BASE, NOVEL, draw_curves, draw_misses, draw_per_class
from matplotlib.colors import to_hex
from ov_classes import read_instances, read_ov_classes
from ov_parts import (
    all_65,
    coco_categories,
    lvis_categories,
    random_content,
    random_detections,
    write_images,
    write_json,
)


@pytest.fixture
def dump(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = random_content(coco_categories(all_65()[:12]), num_images=5)
    path = write_json(tmp_path / "val.json", content)
    write_images(tmp_path / "images", content)
    classes = read_instances(path)[1]
    writer = DumpWriter("dump", None)
    detections = random_detections(content, classes, masks=True)
    writer.finish(detections, classes, path, [writer.close()], {"kinds": ["box", "mask"], "max_dets": 1000})
    return Dump(Path("dump"), path)


def test_a_dump_reads_back_in_coco_s_own_code(dump):
    from pycocotools.coco import COCO

    for image, entries in zip(dump.detections(), [COCO("val.json").loadRes("dump/detections.json")] * 5, strict=True):
        own = entries.loadAnns(entries.getAnnIds(imgIds=[image.image_id]))
        assert [entry["score"] for entry in own] == image.scores.tolist()
        assert [entry["segmentation"] for entry in own] == image.masks
    mine = detection_ap(dump.content, dump.classes, dump.detections(), "box", 1000)
    theirs = detection_ap(dump.content, dump.classes, random_detections(dump.content, dump.classes), "box", 1000)
    np.testing.assert_array_equal(mine.ap, theirs.ap)


def test_matched_objects_are_recall_at_half(dump):
    detections = dump.detections()
    objects, found = match_boxes(dump.content, dump.classes, detections, 1000)
    assert len(objects) == sum(not entry["iscrowd"] for entry in dump.content["annotations"])
    assert all(entry["match"]["match"] is entry for entry in (*objects, *found) if "match" in entry)
    matched = sum("match" in entry for entry in objects)
    assert matched == sum("match" in entry for entry in found)
    assert 0 < matched < len(objects)
    assert len(found) < sum(len(image.scores) for image in detections)  # some are of crowds
    curves = detection_ap(dump.content, dump.classes, detections, "box", 1000).curves[:, 0]
    for label, category in enumerate(dump.classes.category_ids):
        own = ["match" in entry for entry in objects if entry["category_id"] == category]
        if own:
            assert np.isclose((curves[label] > 0).mean(), np.mean(own), atol=0.02)


def test_what_lvis_does_not_know_is_not_wrong():
    content = random_content(lvis_categories(4), num_images=1, crowds=False)
    classes, (image,) = read_ov_classes(content["categories"]), content["images"]
    box = np.array([[0, 0, 1, 1]], dtype=np.float32)
    for label, category in enumerate(classes.category_ids):
        guess = ImageDetections(image["id"], box, np.ones(1, np.float32), np.array([label]))
        shown = {entry["category_id"] for entry in content["annotations"]}
        is_wrong = category in (shown | {*image["neg_category_ids"]}) - {*image["not_exhaustive_category_ids"]}
        _, found = match_boxes(content, classes, [guess])
        assert len(found) <= is_wrong


def test_figures(dump, monkeypatch):
    class_ap = detection_ap(dump.content, dump.classes, dump.detections(), "box", 1000)
    figure = draw_per_class(class_ap, dump.classes, "box")
    bars = list(figure.axes[0].patches)
    widths, names = [bar.get_width() for bar in bars], [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert widths == sorted(widths, reverse=True)
    assert widths == pytest.approx([100 * class_ap.ap[dump.classes.names.index(name)] for name in names])
    for bar, name in zip(bars, names, strict=True):
        assert to_hex(bar.get_facecolor()) == (BASE if name in dump.classes.base_names else NOVEL)
    monkeypatch.setattr(detection_figures, "_MOST_CLASSES", 4)
    assert len(draw_per_class(class_ap, dump.classes, "box").axes[0].patches) == 4
    half, _ = draw_curves(class_ap, dump.classes, "box").axes
    assert half.lines[-1].get_ydata().mean() == pytest.approx(100 * np.nanmean(class_ap.ap50))
    nothing = dump.detections()[0]
    assert not len(nothing.scores)
    sheet = draw_misses(dump, [nothing, *dump.detections()[1:]], Path("images"), 0.5, 2)
    assert f"image {nothing.image_id}: " in sheet.axes[0].get_title()  # the only one of which all objects are missed
    assert sheet.axes[1].get_title() == "0 detections of 0.5 or more, 0 wrong"
    assert len(sheet.axes) == 4
    with pytest.raises(FileNotFoundError):
        draw_misses(dump, dump.detections(), Path("nowhere"), 0.5, 1)


def test_command(dump, refused):
    command = ["dump", "--json", "val.json"]
    inspect_detections.main([*command, "--image-root", "images", "--kind", "mask", "--images", "1"])
    names = {f"{name}.png" for name in ("per_class", "precision_recall", "misses")}
    assert {path.name for path in Path("output/inside").iterdir()} == names
    about = Path("dump/dump.json")
    about.write_text(about.read_text().replace('["box", "mask"]', '["box"]'))
    for words, message in (
        (["--threshold", "1.5"], "--threshold must be in [0, 1], got 1.5"),
        (["--kind", "mask"], "--kind mask was not evaluated, only box"),
        (["--image-root", "nowhere"], "nowhere"),
    ):
        assert message in refused(inspect_detections.main, *command, *words)
