"""One pass of a model over images at native resolution: boxes of every method, CorLoc, and the time of each part.

CorLoc is the share of images whose one predicted box overlaps any annotated object by half (IoU >= 0.5; paper Tab. 7).
Every processed image counts, whichever its objects' classes; one without any object cannot be hit. By class, an image
counts for every class that it shows, as hit when the box overlaps an object of that class.

Letters: M objects of one image, C classes.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from discovery_methods import DiscoveryMethod, feature_reader
from object_discovery import Box
from torch import Tensor, distributed, nn

from last_vit.boxes import box_iou
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.runtime import all_reduce_sum, world_size

MIN_IOU = 0.5


class CorLoc:
    """Streaming CorLoc, summed over all processes in `compute` and `compute_by_class`.

    Args:
        classes: Names of the C classes; empty for no breakdown.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        by_class = (len(self.classes),)
        self._sums = SummedTensors(num_images=(), hits=(), iou=(), num_shown=by_class, class_hits=by_class)

    def update(self, box_xyxy: Sequence[float], objects_xyxy: Tensor, labels: Tensor | None = None) -> float:
        """Count one image.

        Args:
            box_xyxy: The predicted box in pixels of the image.
            objects_xyxy: [M, 4], annotated objects in pixels of the image; M may be 0.
            labels: long [M] in [0, C); needed with `classes`.

        Returns:
            The largest IoU with any object, in [0, 1]; 0 without objects.

        Raises:
            ValueError: A box that is no box (NaN, no area).
        """
        box = torch.as_tensor(box_xyxy, dtype=torch.float64).reshape(1, -1)
        if box.shape != (1, 4) or not bool((box[0, 2:] > box[0, :2]).all()):
            raise ValueError(f"the predicted box must be (x1, y1, x2, y2) with an area, got {box.flatten().tolist()}")
        iou = box_iou(box, objects_xyxy.double().reshape(-1, 4))[0]
        is_hit = iou >= MIN_IOU
        shown, class_hits = torch.zeros(len(self.classes)), torch.zeros(len(self.classes))
        if self.classes:
            shown[labels] = 1
            class_hits[labels[is_hit]] = 1
        best = iou.max() if len(iou) else iou.new_zeros(())
        self._sums.add(num_images=torch.ones(()), hits=is_hit.any(), iou=best, num_shown=shown, class_hits=class_hits)
        return float(best)

    def compute(self) -> dict[str, float]:
        """Over all processes: "corloc", "mean_iou" (of each image's best IoU), both in percent, and "num_images".

        Raises:
            ValueError: If no image was counted.
        """
        totals = self._sums.totals()
        num_images = int(totals["num_images"])
        if num_images == 0:
            raise ValueError("CorLoc of zero images is undefined: the data set gave none")
        corloc, mean_iou = (100.0 * float(totals[name]) / num_images for name in ("hits", "iou"))
        return {"corloc": corloc, "mean_iou": mean_iou, "num_images": num_images}

    def compute_by_class(self) -> dict[str, tuple[float, int]]:
        """Class -> (CorLoc in percent, images that show it), for the classes that any image shows."""
        totals = self._sums.totals()
        counts = zip(self.classes, totals["class_hits"].tolist(), totals["num_shown"].tolist(), strict=True)
        return {name: (100.0 * hit / count, int(count)) for name, hit, count in counts if count}


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
        """Mean over the images of all processes, without each process's first lap if it has more than one.

        Every process must call this together. Infinite if no process has a lap.
        """
        laps = self.laps[1:] or self.laps
        seconds, num_images = all_reduce_sum(torch.tensor(laps, dtype=torch.float64).reshape(-1, 2).sum(dim=0)).tolist()
        return seconds / num_images if num_images else float("inf")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class MethodRun:
    """What one method did on all images, whichever process saw them.

    Attributes:
        method: The method.
        metrics: In percent: "corloc", "mean_iou", and "corloc_whole_image" of a box around the whole image, which is
            what large objects give without any model; in images per second of one process, without loading: "fps_model"
            of the forward pass, which all methods share, "fps_boxes" of the box extraction, and "fps_total".
        by_class: Class -> (CorLoc in percent, images that show it); empty unless asked for.
        boxes: Image name -> its box.
        best_iou: Image's index -> its box's largest IoU with an annotated object.
    """

    method: DiscoveryMethod
    metrics: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, tuple[float, int]] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    best_iou: dict[int, float] = field(default_factory=dict)


@torch.inference_mode()
def discover_boxes(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    methods: Sequence[DiscoveryMethod],
    patch_size: int,
    device: torch.device,
    classes: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> list[MethodRun]:
    """Draw one box per image and method, and count hits; every process must call it.

    The first batch warms up and is not timed, unless it is the only one.

    Args:
        model: On `device`, in eval mode, of a host that has an adapter.
        batches: From `build_native_loader`; each process over its share.
        methods: Any number; the forward pass is made once for all of them.
        patch_size: Of the model, in pixels.
        device: Where to compute.
        classes: For CorLoc by class: names of the labels; empty for none.
        dtype: Of the forward pass, under autocast; features go on in float32.

    Raises:
        ValueError: Images that the model cannot take, or that a method cannot work on; the message names them.
    """
    read, model_watch, whole_image = feature_reader(methods), Stopwatch(device), CorLoc()
    runs = [(MethodRun(method), CorLoc(classes), Stopwatch(device)) for method in methods]
    for batch in batches:
        names, image_hw = batch["name"], batch["image_hw"]
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with model_watch.lap(len(names)), _naming(names), autocast:
            features = read(model, batch["image"].to(device, non_blocking=True))
        for (height, width), objects in zip(image_hw, batch["objects_xyxy"], strict=True):
            whole_image.update((0, 0, width, height), objects)
        for run, corloc, watch in runs:
            with watch.lap(len(names)), _naming(names):
                found = run.method.boxes(features, image_hw, patch_size)
            for i, (box, _) in enumerate(found):
                run.boxes[names[i]] = box
                run.best_iou[batch["index"][i]] = corloc.update(box, batch["objects_xyxy"][i], batch["labels"][i])
    model_seconds, whole = model_watch.seconds_per_image(), whole_image.compute()["corloc"]
    for run, corloc, watch in runs:
        box_seconds = watch.seconds_per_image()
        rates = {"model": 1 / model_seconds, "boxes": 1 / box_seconds, "total": 1 / (model_seconds + box_seconds)}
        run.metrics |= corloc.compute() | {"corloc_whole_image": whole}
        run.metrics |= {f"fps_{part}": rate for part, rate in rates.items()}
        run.by_class |= corloc.compute_by_class()
        run.boxes, run.best_iou = _merge(run.boxes), _merge(run.best_iou)
    return [run for run, _, _ in runs]


def _merge(share: dict) -> dict:
    """The entries of all processes."""
    shares = [share]
    if world_size() > 1:
        shares = [None] * world_size()
        distributed.all_gather_object(shares, share)
    return {key: value for part in shares for key, value in part.items()}


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Say on which images something went wrong."""
    try:
        yield
    except ValueError as error:
        what = names[0] if len(names) == 1 else f"one of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise ValueError(f"image {what}: {error}") from error
