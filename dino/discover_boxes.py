"""One pass of a model over images at native resolution: boxes of every method, CorLoc, and the time of each part.

CorLoc is the share of images whose one predicted box overlaps any annotated object by half (IoU >= 0.5; paper Tab. 7).
Every processed image counts, whichever its objects' classes; one without any object cannot be hit. By class, an image
counts for every class that it shows, as hit when the box overlaps an object of that class.

Letters: M objects of one image.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from object_discovery import Box, DiscoveryMethod, read_features
from torch import Tensor, distributed, nn

from last_vit.boxes import box_iou
from last_vit.runtime import all_reduce_sum, world_size

MIN_IOU = 0.5


class ScoredBox(NamedTuple):
    """The box of one image, in its pixels, and what it overlaps."""

    box_xyxy: Box
    best_iou: float  # with any object, in [0, 1]; 0 without objects
    is_hit: dict[int, bool]  # label that the image shows -> whether the box overlaps an object of it by half


def score_box(box_xyxy: Box, objects_xyxy: Tensor, labels: Tensor) -> ScoredBox:
    """Compare a box with an image's M objects: [M, 4] in the image's pixels, and long [M]; M may be 0."""
    ious = box_iou(torch.tensor([box_xyxy], dtype=torch.float64), objects_xyxy.double())[0].tolist()
    is_hit: dict[int, bool] = {}
    for label, iou in zip(labels.tolist(), ious, strict=True):
        is_hit[label] = is_hit.get(label, False) or iou >= MIN_IOU
    return ScoredBox(box_xyxy, max(ious, default=0.0), is_hit)


def corloc(found: Iterable[ScoredBox]) -> dict[str, float]:
    """CorLoc, and "mean_iou" of each image's best IoU, both in percent, over at least one image."""
    ious = [each.best_iou for each in found]
    hits = sum(iou >= MIN_IOU for iou in ious)
    return {"corloc": 100 * hits / len(ious), "mean_iou": 100 * sum(ious) / len(ious)}


def corloc_by_class(found: Iterable[ScoredBox], classes: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Class -> (CorLoc in percent, images that show it), for the classes that any image shows."""
    hits: dict[int, list[bool]] = {}
    for each in found:
        for label, is_hit in each.is_hit.items():
            hits.setdefault(label, []).append(is_hit)
    return {classes[label]: (100 * sum(hits[label]) / len(hits[label]), len(hits[label])) for label in sorted(hits)}


class Stopwatch:
    """Seconds and images of one part of a loop; on a GPU, a lap ends when it has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[tuple[float, int]] = []

    @contextmanager
    def lap(self, num_images: int) -> Iterator[None]:
        """Time a block, which worked on so many images."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.laps.append((time.perf_counter() - start, num_images))

    def seconds_per_image(self) -> float:
        """Mean over all processes, which call this together, less each one's first of several laps; inf without any."""
        laps = self.laps[1:] or self.laps
        seconds, num_images = all_reduce_sum(torch.tensor(laps, dtype=torch.float64).reshape(-1, 2).sum(dim=0)).tolist()
        return seconds / num_images if num_images else float("inf")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class MethodRun:
    """What one method did on all images, whichever process saw them.

    Metrics in percent: "corloc", "mean_iou", and "corloc_whole_image" of a box around the whole image; in images per
    second of one process, without loading: "fps_model" of the forward pass, "fps_boxes" and "fps_total".
    """

    method: DiscoveryMethod
    found: dict[int, ScoredBox] = field(default_factory=dict)  # by the image's index in the data set
    metrics: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def discover_boxes(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    methods: Sequence[DiscoveryMethod],
    patch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[MethodRun]:
    """Draw one box per image and method, and count hits; every process must call it, each over its share.

    One forward pass, under autocast of `dtype`, serves all methods. The first batch warms up and is not timed, unless
    it is the only one. Images that the model cannot take, or a method cannot work on, are named in a ValueError.
    """
    model_watch, whole = Stopwatch(device), {}
    runs = [(MethodRun(method), Stopwatch(device)) for method in methods]
    for batch in batches:
        names, image_hw = batch["name"], batch["image_hw"]
        truth = list(zip(batch["index"], batch["objects_xyxy"], batch["labels"], strict=True))
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with model_watch.lap(len(names)), _naming(names), autocast:
            features = read_features(model, batch["image"].to(device, non_blocking=True), methods)
        for (height, width), (index, *objects) in zip(image_hw, truth, strict=True):
            whole[index] = score_box((0, 0, width, height), *objects)
        for run, watch in runs:
            with watch.lap(len(names)), _naming(names):
                boxes = run.method.boxes(features, image_hw, patch_size)
            for (box, _), (index, *objects) in zip(boxes, truth, strict=True):
                run.found[index] = score_box(box, *objects)
    model_seconds, of_whole = model_watch.seconds_per_image(), corloc(_gather(whole).values())["corloc"]
    for run, watch in runs:
        run.found, box_seconds = _gather(run.found), watch.seconds_per_image()
        rates = {"model": 1 / model_seconds, "boxes": 1 / box_seconds, "total": 1 / (model_seconds + box_seconds)}
        run.metrics = corloc(run.found.values()) | {"corloc_whole_image": of_whole}
        run.metrics |= {f"fps_{part}": rate for part, rate in rates.items()}
    return [run for run, _ in runs]


def _gather(share: dict[int, ScoredBox]) -> dict[int, ScoredBox]:
    """The images of all processes, in order."""
    shares = [share]
    if world_size() > 1:
        shares = [None] * world_size()
        distributed.all_gather_object(shares, share)
    return dict(sorted(pair for part in shares for pair in part.items()))


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Say on which images something went wrong."""
    try:
        yield
    except ValueError as error:
        what = names[0] if len(names) == 1 else f"one of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise ValueError(f"image {what}: {error}") from error
