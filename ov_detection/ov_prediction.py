"""Detection of any vocabulary on a user's images, and the pictures of what was found; what predict.py runs."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from class_embeddings import split_names
from detectron2.structures import Instances
from fvit.fvit_layers import SquareDetector
from ov_data import FitSquare
from ov_detector import detector_of, load_detector
from ov_evaluator import to_detections
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import read_checkpoint
from last_vit.data.image_files import load_photo
from last_vit.evaluation import progress
from last_vit.lazy_config import read_config
from last_vit.runtime import select_device

# Okabe and Ito's colours, told apart also by the colour-blind; classes take them in turn
_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_SHORT_SIDE = 480  # smaller images are enlarged, for their labels to be readable
_MOST_FILLED = 10  # masks; more would hide each other


def predict(args: Namespace) -> None:
    """Load, detect, draw, write; whatever the user can mend is refused before the first image."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {args.threshold}")
    missing = [str(path) for path in args.image if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no image {', '.join(missing)}")
    twice = [stem for stem, count in Counter(path.stem for path in args.image).items() if count > 1]
    if twice:
        raise ValueError(f"several images are called {twice[0]!r}, as would be their pictures: use several --output")
    cfg, device = read_config(args.config_file, args.opts, "in ov_detection/configs/"), select_device(args.device)
    model = load_predictor(cfg, args, device)
    tested = cfg.dataloader.test.dataset
    fit = FitSquare(tested.size, antialias=tested.get("antialias", False))
    images, photos = [], progress(args.image, "predict", "image")
    for path in photos:
        pixels = np.array(load_photo(path))
        height, width = pixels.shape[:2]
        resized = fit.get_transform(pixels).apply_image(pixels)
        sample = {"image": torch.from_numpy(resized.copy()).permute(2, 0, 1), "height": height, "width": width}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=cfg.train.bf16):
            instances = model([sample])[0]["instances"].to("cpu")
        instances = instances[instances.scores >= args.threshold]
        found = _describe(instances, model.names)
        _draw(pixels, instances, model.names, args.output / f"{path.stem}.png")
        images.append({"image": path.name, "height": height, "width": width, "detections": found})
        counts = Counter(entry["class"] for entry in found)
        photos.write(f"{path.name}: {', '.join(f'{n} {name}' for name, n in counts.most_common()) or 'nothing'}")
    with atomic_file(args.output / "detections.json") as file:
        file.write((json.dumps({"vocabulary": model.names, "images": images}, indent=2) + "\n").encode("ascii"))
    print(f"written to {args.output}")


def load_predictor(cfg: Any, args: Namespace, device: torch.device) -> SquareDetector:
    """The trained detector of --checkpoint: F-ViT of any vocabulary, a Mask R-CNN of its own classes.

    ValueError: As `detector_of` and `load_detector`; flags that do not say what F-ViT is to look for, or say it to a
    Mask R-CNN; a checkpoint that does not say which classes it was trained on.
    """
    names = None if args.vocabulary is None else split_names(args.vocabulary)
    is_named, has_vocabulary = names is not None or args.embeddings is not None, "vocabulary" in cfg
    if has_vocabulary and not is_named:
        raise ValueError("name what to look for: --vocabulary, --embeddings, or both")
    if is_named and not has_vocabulary:
        raise ValueError("a Mask R-CNN finds the classes of its training: leave out --vocabulary and --embeddings")
    content = read_checkpoint(args.checkpoint)
    trained_on = content.get("detector", {}).get("base_names" if has_vocabulary else "names")
    if trained_on is None:
        remedy = (
            "convert it with ov_detection/convert_fvit_checkpoint.py --json, an annotation file of its training set"
        )
        remedy = remedy if has_vocabulary else "expected one of lazy_train.py and this config"
        raise ValueError(f"{args.checkpoint} does not say which classes it was trained on: {remedy}")
    if has_vocabulary:
        cfg.vocabulary.path = str(args.embeddings or "")
    else:
        names = list(trained_on.values())
    model = detector_of(cfg, names, trained_on, device, has_weights=True)
    load_detector(model, args.checkpoint, content)
    return model.eval()


def _describe(instances: Instances, names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections of one image, best first, as JSON values: class, score, box_xyxy and, with masks, segmentation."""
    found = to_detections(0, instances, instances.has("pred_masks"))
    boxes = [[round(side, 2) for side in box] for box in found.boxes_xyxy.tolist()]
    described = []
    for place, (label, score, box) in enumerate(zip(found.labels, found.scores.tolist(), boxes, strict=True)):
        described.append({"class": names[label], "score": round(score, 4), "box_xyxy": box})
        if found.masks is not None:
            described[-1]["segmentation"] = found.masks[place]
    return described


def _draw(pixels: np.ndarray, instances: Instances, names: Sequence[str], target: Path) -> None:
    """Write the image with what was found in it, and the classes and scores."""
    labels = instances.pred_classes.tolist()
    texts = [f"{names[label]} {score:.2f}" for label, score in zip(labels, instances.scores.tolist(), strict=True)]
    picture = draw_instances(pixels, instances, texts, [_COLORS[label % len(_COLORS)] for label in labels])
    target.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(picture).save(target)


def draw_instances(pixels: np.ndarray, instances: Instances, texts: Sequence[str], colors: Sequence[str]) -> Tensor:
    """Image uint8 [H, W, 3] -> [3, h, w], a small one enlarged, with boxes, texts and masks (of many only the rims).

    Instances come best first, and the best are on top.
    """
    scale = max(1.0, _SHORT_SIDE / min(pixels.shape[:2]))
    size = [round(side * scale) for side in pixels.shape[:2]]
    picture = resize(torch.from_numpy(pixels).permute(2, 0, 1), size, antialias=True)
    instances, texts, colors = instances[torch.arange(len(instances)).flip(0)], [*texts[::-1]], [*colors[::-1]]
    is_full, width = len(texts) > _MOST_FILLED, max(2, round(min(size) / 200))
    if texts and instances.has("pred_masks"):
        masks = resize(instances.pred_masks, size, InterpolationMode.NEAREST)
        if is_full:
            for mask in masks:
                mask &= max_pool2d((~mask)[None].float(), 2 * width + 1, stride=1, padding=width)[0] > 0
        masks &= masks.flip(0).cumsum(0, dtype=torch.uint8).flip(0) == 1  # torchvision paints what overlaps black
        picture = draw_segmentation_masks(picture, masks, alpha=1.0 if is_full else 0.43, colors=colors)
    if texts:
        boxes, width = instances.pred_boxes.tensor * scale, 1 if is_full else width
        picture = draw_bounding_boxes(picture, boxes, texts, colors, width=width, fill_labels=True)
    return picture
