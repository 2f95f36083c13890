"""The evaluator: pycocotools' and the groups' numbers from detectron2's instances, over one process and two."""

import dataclasses

import numpy as np
import pytest
import torch
from detection_ap import ClassAP, detection_ap
from detectron2.structures import Instances
from ov_evaluator import OvEvaluator
from ov_groups import group_metrics
from ov_parts import all_65, coco_categories, lvis_categories, random_content, random_detections, to_outputs, write_json
from test_detection_ap import of_pycocotools
from torch import multiprocessing

from last_vit.runtime import get_logger

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def process(evaluator, images):
    for image in images:
        evaluator.process([{"image_id": image.image_id}], [to_outputs(image)])


@pytest.fixture
def coco(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=20)
    return content, write_json(tmp_path / "coco.json", content)


def test_ov_coco_is_pycocotools(coco):
    content, path = coco
    evaluator = OvEvaluator(path, kinds=("box", "mask"))
    images = random_detections(content, evaluator.classes, masks=True)
    process(evaluator, images)
    found = evaluator.evaluate()["detection"]
    for kind, prefix in (("box", ""), ("mask", "mask_")):
        theirs = group_metrics(ClassAP(*of_pycocotools(content, evaluator.classes, images, kind)), evaluator.classes)
        assert len(theirs) == 6
        for name, value in theirs.items():
            assert found[f"{prefix}{name}"] == pytest.approx(value, abs=1e-9)
    assert found["base_classes"] + found["novel_classes"] + found["classes_without_objects"] == 65
    evaluator.reset()
    process(evaluator, [dataclasses.replace(image, scores=1 - image.scores) for image in images])
    assert evaluator.evaluate()["detection"]["ap50_all"] != found["ap50_all"]


def test_the_identity_holds_when_all_classes_have_objects(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=20, objects=8, crowds=False)
    for place, entry in enumerate(content["annotations"]):
        entry["category_id"] = content["categories"][place % 65]["id"]
    evaluator = OvEvaluator(write_json(tmp_path / "x.json", content))
    process(evaluator, random_detections(content, evaluator.classes))
    found = evaluator.evaluate()["detection"]
    assert found["ap50_all"] == pytest.approx((48 * found["ap50_base"] + 17 * found["ap50_novel"]) / 65, abs=1e-9)
    assert (found["base_classes"], found["novel_classes"], found["classes_without_objects"]) == (48, 17, 0)


def test_ov_lvis(tmp_path):
    content = random_content(lvis_categories(12), num_images=10, crowds=False)
    evaluator = OvEvaluator(write_json(tmp_path / "x.json", content), kinds=("box", "mask"))
    images = random_detections(content, evaluator.classes, num_dets=330, masks=True)
    process(evaluator, images)
    found = evaluator.evaluate()["detection"]
    for kind in ("box", "mask"):
        groups = group_metrics(detection_ap(content, evaluator.classes, images, kind, 300), evaluator.classes)
        assert set(groups) == {"ap", "ap50", "apr", "apc", "apf"}
        for name, value in groups.items():
            assert found[f"{kind}_{name}"] == pytest.approx(value, abs=1e-9)
        more = group_metrics(detection_ap(content, evaluator.classes, images, kind, 330), evaluator.classes)
        assert more["ap"] != pytest.approx(groups["ap"], abs=1e-6)


def test_each_image_counts_once_and_all_are_wanted(coco, caplog):
    content, path = coco
    get_logger().addHandler(caplog.handler)
    evaluator = OvEvaluator(path)
    images = random_detections(content, evaluator.classes)
    process(evaluator, images[:-2])
    missing = sorted(image.image_id for image in images[-2:])
    with pytest.raises(ValueError, match=f"2 of 20 images have not been evaluated, such as {missing[0]}, {missing[1]}"):
        evaluator.evaluate()
    process(evaluator, images[-2:])
    once = evaluator.evaluate()
    process(evaluator, images[3:6])
    assert evaluator.evaluate() == once
    assert "3 images came more than once and were counted once" in caplog.text
    get_logger().removeHandler(caplog.handler)


def test_some_images_alone(coco, tmp_path):
    content, path = coco
    some = [entry["id"] for entry in content["images"][4:9]]
    part = {
        **content,
        "images": content["images"][4:9],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in some],
    }
    evaluators = OvEvaluator(path, image_ids=some), OvEvaluator(write_json(tmp_path / "part.json", part))
    images = random_detections(content, evaluators[0].classes)
    for evaluator in evaluators:
        process(evaluator, images[4:9])
        assert evaluator.num_images == 5
    assert evaluators[0].evaluate() == evaluators[1].evaluate()
    with pytest.raises(ValueError, match="is none of the 5 to be evaluated"):
        process(evaluators[0], images[:1])
    with pytest.raises(ValueError, match="image_ids must be images of the file, got 7"):
        OvEvaluator(path, image_ids=[7])
    with pytest.raises(ValueError, match="got none"):
        OvEvaluator(path, image_ids=[])


def _distributed_worker(rank, init_file, path, content, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    for share in (slice(rank, None, 2), slice(rank * 20, None), slice(rank * 7, 13 + rank * 7)):
        # one in turn; all in the first process; and some images twice, as samplers that fill up give them
        evaluator = OvEvaluator(path, kinds=("box", "mask"))
        process(evaluator, random_detections(content, evaluator.classes, masks=True)[share])
        results.put((rank, evaluator.evaluate()))
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(coco, tmp_path):
    content, path = coco
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_distributed_worker, (str(tmp_path / "init"), path, content, results), nprocs=2)
    evaluator = OvEvaluator(path, kinds=("box", "mask"))
    process(evaluator, random_detections(content, evaluator.classes, masks=True))
    alone = evaluator.evaluate()
    found = [results.get() for _ in range(6)]
    assert [value for rank, value in found if rank == 0] == [alone] * 3
    assert [value for rank, value in found if rank == 1] == [{}] * 3


def test_wrong_answers(coco):
    content, path = coco
    evaluator = OvEvaluator(path, kinds=("mask",))
    image = random_detections(content, evaluator.classes)[1]
    with pytest.raises(ValueError, match=f"image {image.image_id} has no pred_masks"):
        process(evaluator, [image])
    small = to_outputs(image)["instances"]
    small = Instances((7, 8), **small.get_fields())
    with pytest.raises(ValueError, match=r"is \(48, 64\) \(height, width\), its detections are for \(7, 8\)"):
        evaluator.process([{"image_id": image.image_id}], [{"instances": small}])
    boxes = OvEvaluator(path)
    process(boxes, random_detections(content, boxes.classes)[1:])
    broken = dataclasses.replace(random_detections(content, boxes.classes)[0], boxes_xyxy=np.full((1, 4), np.nan))
    broken = dataclasses.replace(broken, scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64))
    process(boxes, [broken])
    with pytest.raises(ValueError, match="not finite"):
        boxes.evaluate()


def test_wrong_files(coco, tmp_path):
    content, path = coco
    for kinds in ((), ("segm",)):
        with pytest.raises(ValueError, match="kinds must be of box, mask"):
            OvEvaluator(path, kinds)
    with pytest.raises(FileNotFoundError):
        OvEvaluator(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="has no list images"):
        OvEvaluator(write_json(tmp_path / "list.json", [1]))
    lvis = random_content(lvis_categories(9))
    del lvis["images"][0]["neg_category_ids"]
    with pytest.raises(ValueError, match=r"lvis.json: 1 of 6 images have no list neg_category_ids"):
        OvEvaluator(write_json(tmp_path / "lvis.json", lvis))
    content["categories"][0]["name"] = "stop sign"
    with pytest.raises(ValueError, match="cannot tell base from novel"):
        OvEvaluator(write_json(tmp_path / "other.json", content))
