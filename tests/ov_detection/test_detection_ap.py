"""AP per class: pycocotools on the same detections, a plain version of LVIS's rules, and cases done by hand."""

import dataclasses
import gc

import bench_lvis as bench
import numpy as np
import pytest
from detection_ap import ImageDetections, detection_ap
from ov_classes import read_ov_classes
from ov_parts import (
    HEIGHT,
    WIDTH,
    all_65,
    coco_categories,
    lvis_categories,
    of_pycocotools,
    random_content,
    random_detections,
)
from pycocotools import mask as mask_tools


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("max_dets", [1000, 4])
@pytest.mark.parametrize("num_classes", [5, 65])
def test_coco_is_pycocotools(kind, max_dets, num_classes):
    content = random_content(coco_categories(all_65()[:num_classes]), num_images=12)
    assert sum(entry["iscrowd"] for entry in content["annotations"]) > 3
    classes = read_ov_classes(content["categories"])
    detections = random_detections(content, classes, masks=True)
    ours = detection_ap(content, classes, detections, kind, max_dets)
    theirs = of_pycocotools(content, classes, detections, kind, max_dets)
    for own, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, reference, rtol=0, atol=1e-12)
    assert np.nanmean(ours.ap50) > np.nanmean(ours.ap) > 0.05
    shown = {entry["category_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    assert np.isnan(ours.ap).sum() == num_classes - len(shown)


def whole_pixels(content, detections):
    """Boxes of whole pixels, whose masks overlap as they do, in place of a bench's."""
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"] = [round(side) for side in entry["bbox"]]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for image in detections:
        boxes = image.boxes_xyxy.round().clip(0)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        yield dataclasses.replace(image, boxes_xyxy=boxes, masks=mask_tools.frPyObjects(sides, 480, 640))


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_lvis_is_the_plain_version(kind, monkeypatch):
    content, detections = bench.synthetic(num_images=25, num_dets=60, num_classes=30)
    detections = list(whole_pixels(content, detections))
    monkeypatch.setattr(bench, "MAX_DETS", 20)
    classes = read_ov_classes(content["categories"])
    ours = detection_ap(content, classes, detections, kind, max_dets=20)
    ap, ap50 = bench.plain_ap(content, classes, detections)
    np.testing.assert_allclose(ours.ap, ap, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.ap50, ap50, rtol=0, atol=1e-12)
    assert np.nanmean(ap) > 0.05
    unlimited = detection_ap(content, classes, detections, kind, max_dets=60)
    assert not np.allclose(unlimited.ap, ours.ap, equal_nan=True)


def one_image(boxes, labels, scores):
    shapes = np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32)
    return ImageDetections(1, *shapes, np.array(labels, dtype=np.int64))


def lvis_image(absent=(), partial=()):
    """One object of class 1 in the box (10, 10, 30, 30), of four classes."""
    image = {"id": 1, "height": HEIGHT, "width": WIDTH}
    image |= {"neg_category_ids": list(absent), "not_exhaustive_category_ids": list(partial)}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400}
    content = {"images": [image], "annotations": [entry], "categories": lvis_categories(4)}
    return content, read_ov_classes(content["categories"])


def test_lvis_by_hand():
    hit, miss = (10, 10, 30, 30), (40, 10, 60, 30)
    found = one_image([miss, hit], [0, 0], [0.9, 0.5])
    content, classes = lvis_image()
    assert detection_ap(content, classes, [found]).ap50[0] == pytest.approx(0.5)
    content, classes = lvis_image(partial=[1])  # the object may well be there, only nobody drew it
    assert detection_ap(content, classes, [found]).ap50[0] == pytest.approx(1)
    assert detection_ap(content, classes, [found], max_dets=1).ap50[0] == 0  # the best one is the miss
    others = one_image([miss, hit, hit], [0, 1, 2], [0.1, 0.9, 0.8])
    content, classes = lvis_image(absent=[3])
    result = detection_ap(content, classes, [others])
    assert result.ap50[0] == 0
    assert np.isnan(result.ap50[1:]).all()  # class 1 is not verified there, class 2 is wrong, but without objects
    assert detection_ap(content, classes, [one_image([hit, hit], [1, 0], [0.9, 0.8])]).ap50[0] == pytest.approx(1)


def test_errors_say_what_is_wrong():
    content, classes = lvis_image()
    good = one_image([(1, 2, 3, 4)], [0], [0.5])
    for changed in ({"scores": np.array([np.nan])}, {"boxes_xyxy": np.array([[1, 2, 3, np.inf]])}):
        with pytest.raises(ValueError, match=r"image 1: .* not finite"):
            detection_ap(content, classes, [dataclasses.replace(good, **changed)])
    assert gc.isenabled()
    for name in ("bbox", "area"):
        broken = {**content["annotations"][0]}
        del broken[name]
        with pytest.raises(ValueError, match="annotation 1 has no usable box or area"):
            detection_ap({**content, "annotations": [broken]}, classes, [good])
