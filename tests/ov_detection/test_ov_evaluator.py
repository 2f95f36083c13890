"""The evaluator: pycocotools' numbers and means over groups from detectron2's instances, over one process and two."""

import dataclasses

import numpy as np
import pytest
from detection_ap import ClassAP, detection_ap
from detectron2.structures import Instances
from ov_classes import read_ov_classes
from ov_evaluator import OvEvaluator, group_metrics
from ov_parts import (
    all_65,
    coco_categories,
    lvis_categories,
    random_content,
    random_detections,
    to_outputs,
    write_json,
)


def random_ap(num_classes):
    return ClassAP(*np.random.default_rng(0).random((3, num_classes)), np.zeros((num_classes, 2, 101)))


def test_classes_without_objects_are_in_no_mean():
    classes, ap = read_ov_classes(coco_categories(["cat", "person", "dog", "car"])), random_ap(4)
    ap.ap50[[0, 1]] = ap.ap[[0, 1]] = np.nan
    found = group_metrics(ap, classes)
    assert found["ap50_all"] == pytest.approx(50 * (ap.ap50[2] + ap.ap50[3]))
    assert found["ap50_novel"] == pytest.approx(100 * ap.ap50[2])
    assert found["ap50_base"] == pytest.approx(100 * ap.ap50[3])
    ap.ap50[2] = ap.ap[2] = np.nan
    found = group_metrics(ap, classes)
    assert set(found) == {"ap50_all", "ap50_base", "ap_all", "ap_base"}
    assert not any(np.isnan(value) for value in found.values())


def process(evaluator, images):
    for image in images:
        evaluator.process([{"image_id": image.image_id}], [to_outputs(image)])


@pytest.fixture
def coco(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=20)
    return content, write_json(tmp_path / "coco.json", content)


def test_ov_coco(coco):
    content, path = coco
    evaluator = OvEvaluator(path, kinds=("box", "mask"))
    images = random_detections(content, evaluator.classes, masks=True)
    process(evaluator, images)
    answer = evaluator.evaluate()
    found, (heading, *rows) = answer["detection"], answer["per_class"]
    assert heading == ["class", "split", "objects", "box_ap", "box_ar", "mask_ap", "mask_ar"]
    assert sum(row[2] for row in rows) == sum(not entry["iscrowd"] for entry in content["annotations"])
    for split in ("base", "novel"):
        of_split = [row[3] for row in rows if row[1] == split]
        assert found[f"{split}_classes"] == len(of_split)
        assert found[f"ap_{split}"] == pytest.approx(np.mean(of_split), abs=0.01)
    names = {f"{metric}_{group}" for metric in ("ap", "ap50") for group in ("all", "base", "novel")}
    assert_groups(found, content, evaluator.classes, images, {"box": "", "mask": "mask_"}, names, 1000)
    assert found["base_classes"] + found["novel_classes"] + found["classes_without_objects"] == 65
    evaluator.reset()
    process(evaluator, [dataclasses.replace(image, scores=1 - image.scores) for image in images])
    assert evaluator.evaluate()["detection"]["ap50_all"] != found["ap50_all"]


def test_ov_lvis(tmp_path):
    content = random_content(lvis_categories(12), num_images=10, crowds=False)
    evaluator = OvEvaluator(write_json(tmp_path / "x.json", content), kinds=("box", "mask"))
    images = random_detections(content, evaluator.classes, num_dets=330, masks=True)
    process(evaluator, images)
    found, names = evaluator.evaluate()["detection"], {"ap", "ap50", "apr", "apc", "apf"}
    assert_groups(found, content, evaluator.classes, images, {"box": "box_", "mask": "mask_"}, names, 300)
    more = group_metrics(detection_ap(content, evaluator.classes, images, "box", 330), evaluator.classes)
    assert more["ap"] != pytest.approx(found["box_ap"], abs=1e-6)


def assert_groups(found, content, classes, images, prefixes, names, max_dets):
    """The metrics are means of `detection_ap`, whose tests compare it with pycocotools and with LVIS's rules."""
    for kind, prefix in prefixes.items():
        groups = group_metrics(detection_ap(content, classes, images, kind, max_dets), classes)
        assert set(groups) == names
        for name, value in groups.items():
            assert found[f"{prefix}{name}"] == pytest.approx(value, abs=1e-9)


def test_all_images_are_wanted(coco):
    content, path = coco
    evaluator = OvEvaluator(path)
    images = random_detections(content, evaluator.classes)
    process(evaluator, images[:-2])
    missing = sorted(image.image_id for image in images[-2:])
    with pytest.raises(ValueError, match=f"2 of 20 images have not been evaluated, such as {missing[0]}, {missing[1]}"):
        evaluator.evaluate()


def test_some_images_alone(coco, tmp_path):
    content, path = coco
    some = [entry["id"] for entry in content["images"][4:9]]
    own = [entry for entry in content["annotations"] if entry["image_id"] in some]
    part = write_json(tmp_path / "part.json", {**content, "images": content["images"][4:9], "annotations": own})
    evaluators = OvEvaluator(path, image_ids=some), OvEvaluator(part)
    images = random_detections(content, evaluators[0].classes)
    for evaluator in evaluators:
        process(evaluator, images[4:9])
        assert evaluator.num_images == 5
    assert evaluators[0].evaluate() == evaluators[1].evaluate()
    with pytest.raises(ValueError, match="1 of the images to be evaluated are not in the file"):
        OvEvaluator(path, image_ids=[7])
    for kinds in ((), ("segm",)):
        with pytest.raises(ValueError, match="kinds must be of box, mask"):
            OvEvaluator(path, kinds)


@pytest.mark.parametrize("shares", [[(0, 20, 2), (1, 20, 2)], [(0, 20, 1), (20, 20, 1)], [(0, 13, 1), (7, 20, 1)]])
def test_two_processes_give_what_one_gives(coco, monkeypatch, shares):
    """In turn; all in the first process; and some images twice, as samplers that fill up give them."""
    content, path = coco
    first, second, alone = (OvEvaluator(path, kinds=("box", "mask")) for _ in range(3))
    images = random_detections(content, alone.classes, masks=True)
    for evaluator, share in zip((first, second, alone), (*shares, (0, 20, 1)), strict=True):
        process(evaluator, images[slice(*share)])
    expected = alone.evaluate()
    monkeypatch.setattr("ov_evaluator.comm.gather", lambda found: [found, second._found])
    assert first.evaluate() == expected
    monkeypatch.setattr("ov_evaluator.comm.is_main_process", lambda: False)
    assert second.evaluate() == {}


def test_wrong_answers(coco):
    content, path = coco
    evaluator = OvEvaluator(path, kinds=("mask",))
    image = random_detections(content, evaluator.classes)[1]
    with pytest.raises(ValueError, match=f"image {image.image_id} has no pred_masks"):
        process(evaluator, [image])
    small = Instances((7, 8), **to_outputs(image)["instances"].get_fields())
    with pytest.raises(ValueError, match=r"is \(48, 64\) \(height, width\), its detections are for \(7, 8\)"):
        evaluator.process([{"image_id": image.image_id}], [{"instances": small}])
