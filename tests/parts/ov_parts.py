"""Parts that the tests of open-vocabulary detection share: files, images, and what a detector might find."""

import contextlib
import io
import json

import numpy as np
import torch
from detection_ap import ClassAP, ImageDetections
from ov_classes import OV_COCO_BASE, OV_COCO_NOVEL
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 48, 64


def coco_categories(names):
    """COCO's gaps between ids, and an order that is not theirs."""
    entries = [{"id": 3 * place + 1, "name": name, "supercategory": "x"} for place, name in enumerate(names)]
    return entries[::2] + entries[1::2]


def lvis_categories(num_classes):
    return [
        {"id": n + 1, "name": f"class_{n}", "frequency": "rcf"[n % 3], "image_count": n} for n in range(num_classes)
    ]


def all_65():
    return [name for pair in zip(OV_COCO_BASE, OV_COCO_NOVEL, strict=False) for name in pair] + list(OV_COCO_BASE[17:])


def polygon(x1, y1, x2, y2):
    """A box without its upper right corner."""
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    return [x1, y1, middle_x, y1, middle_x, middle_y, x2, middle_y, x2, y2, x1, y2]


def random_content(categories, num_images=6, objects=5, seed=0, crowds=True):
    """Images with objects of random classes, of which each image shows a few; LVIS's lists with frequencies."""
    rng = np.random.default_rng(seed)
    ids = [entry["id"] for entry in categories]
    images, annotations = [], []
    for number in rng.permutation(np.arange(11, 11 + num_images)).tolist():
        image = {"id": number, "file_name": f"{number:06d}.png", "height": HEIGHT, "width": WIDTH}
        shown = rng.choice(ids, min(3, len(ids)), replace=False).tolist()
        if "frequency" in categories[0]:
            absent = rng.choice(ids, 4, replace=False).tolist()
            image["neg_category_ids"] = [category for category in absent if category not in shown]
            image["not_exhaustive_category_ids"] = shown[:1]
            image["coco_url"] = f"http://host/val2017/{image.pop('file_name')}"
        images.append(image)
        for _ in range(objects):
            x1, y1 = rng.uniform(0, WIDTH - 25), rng.uniform(0, HEIGHT - 25)
            x2, y2 = x1 + rng.uniform(5, 24), y1 + rng.uniform(5, 24)
            is_crowd = crowds and rng.random() < 0.15
            part = [polygon(x1, y1, x2, y2)]
            if is_crowd:
                code = mask_tools.merge(mask_tools.frPyObjects(part, HEIGHT, WIDTH))
                part = {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations),  # 0 too, as some files have it
                    "image_id": number,
                    "category_id": int(rng.choice(shown)),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1) * 0.75,
                    "iscrowd": int(is_crowd),
                    "segmentation": part,
                }
            )
    return {"info": {"year": 1}, "images": images, "annotations": annotations, "categories": categories}


def random_detections(content, classes, num_dets=40, seed=0, masks=False):
    """Jittered objects, mostly of the right class, with many equal scores; one image has none."""
    rng = np.random.default_rng(seed)
    found = []
    for place, image in enumerate(content["images"]):
        own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        n = num_dets if place else 0
        chosen = rng.integers(0, len(own), n)
        boxes = np.array([own[i]["bbox"] for i in chosen], dtype=np.float64).reshape(n, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 2, boxes.shape)
        boxes = boxes.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.array([classes.label_of[own[i]["category_id"]] for i in chosen], dtype=np.int64)
        labels = np.where(rng.random(n) < 0.7, labels, rng.integers(0, len(classes), n))
        scores = (rng.integers(1, 20, n) / 20).astype(np.float32)
        codes = mask_tools.frPyObjects([polygon(*box) for box in boxes.tolist()], HEIGHT, WIDTH) if masks and n else []
        codes = [{**code, "counts": code["counts"].decode()} for code in codes] if masks else None
        found.append(ImageDetections(image["id"], boxes.astype(np.float32), scores, labels, codes))
    return found


def of_pycocotools(content, classes, detections, kind, max_dets=1000):
    """`ClassAP`; pycocotools itself takes an annotation of id 0 for no match, so ids count from 1 here."""
    truth = COCO()
    renumbered = [{**entry, "id": number} for number, entry in enumerate(content["annotations"], start=1)]
    truth.dataset = {**content, "annotations": renumbered}
    left_out = "bbox" if kind == "mask" else "segmentation"  # of which loadRes would make areas
    results = [entry for image in detections for entry in image.as_results(classes)]
    results = [{key: entry[key] for key in entry if key != left_out} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].astype(np.float64)
    recall = evaluation.eval["recall"][:, :, 0, -1].astype(np.float64)
    precision[precision < 0] = recall[recall < 0] = np.nan
    means = precision.mean(axis=(0, 1)), precision[0].mean(axis=0), recall.mean(axis=0)
    return ClassAP(*means, precision[[0, 5]].transpose(2, 0, 1))


def to_outputs(image):
    """A detector's answer to one image."""
    from detectron2.structures import Boxes, Instances

    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.from_numpy(image.boxes_xyxy))
    instances.scores = torch.from_numpy(image.scores)
    instances.pred_classes = torch.from_numpy(image.labels)
    if image.masks is not None:
        masks = mask_tools.decode(image.masks) if image.masks else np.zeros((HEIGHT, WIDTH, 0), dtype=np.uint8)
        instances.pred_masks = torch.from_numpy(masks).permute(2, 0, 1).bool()
    return {"instances": instances}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_images(folder, content, seed=0):
    """Noise in the sizes that the file says."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for image in content["images"]:
        name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
        (folder / name).parent.mkdir(exist_ok=True)
        noise = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder
