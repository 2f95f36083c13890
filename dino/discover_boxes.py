"""One pass of a model over images at native resolution: boxes of every method, CorLoc, and the time of each part.

Forward pass and box extraction are timed apart, without loading, and on a GPU after it has finished. The first batch
warms up and is not timed, unless it is the only one.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from corloc import CorLoc
from discovery_methods import DiscoveryMethod
from last_attention import LastAttention, last_attention
from torch import Tensor, nn

from last_vit.dense import DenseOutput, dense_forward
from last_vit.runtime import all_reduce_sum


class Stopwatch:
    """Seconds and images of one part of a loop, summed over processes in `images_per_second`.

    Args:
        device: Whose work counts.
    """

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
    """What one method did in one pass, in this process.

    Attributes:
        method: The method.
        corloc: Counts of all images so far.
        stopwatch: Of the box extraction.
        boxes: Image name -> its box.
        best_iou: Image's index in the data set -> its box's largest IoU with an annotated object.
    """

    method: DiscoveryMethod
    corloc: CorLoc
    stopwatch: Stopwatch
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    best_iou: dict[int, float] = field(default_factory=dict)


class DiscoveryPass(NamedTuple):
    """One pass of a model over this process's share of the images.

    Attributes:
        model_watch: Of the forward passes.
        runs: One per method.
        whole_image: CorLoc of a box around the whole image: what large objects give without any model.
    """

    model_watch: Stopwatch
    runs: list[MethodRun]
    whole_image: CorLoc


def feature_reader(methods: Sequence[DiscoveryMethod]) -> Callable[[nn.Module, Tensor], DenseOutput | LastAttention]:
    """The cheapest forward pass that serves all methods."""
    return last_attention if any(method.needs_attention for method in methods) else dense_forward


@torch.inference_mode()
def discover_boxes(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    methods: Sequence[DiscoveryMethod],
    patch_size: int,
    device: torch.device,
    classes: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> DiscoveryPass:
    """Draw one box per image and method, and count hits.

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
    runs = [MethodRun(method, CorLoc(classes), Stopwatch(device)) for method in methods]
    for batch in batches:
        names, image_hw = batch["name"], batch["image_hw"]
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with model_watch.lap(len(names)), _naming(names), autocast:
            features = read(model, batch["image"].to(device, non_blocking=True))
        for (height, width), objects in zip(image_hw, batch["objects_xyxy"], strict=True):
            whole_image.update((0, 0, width, height), objects)
        for run in runs:
            with run.stopwatch.lap(len(names)), _naming(names):
                found = run.method.boxes(features, image_hw, patch_size)
            for i, box in enumerate(found):
                labels = batch["labels"][i] if classes else None
                iou = run.corloc.update(box.box_xyxy, batch["objects_xyxy"][i], labels)
                run.boxes[names[i]], run.best_iou[batch["index"][i]] = box.box_xyxy, iou
    return DiscoveryPass(model_watch, runs, whole_image)


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """Say on which images something went wrong."""
    try:
        yield
    except ValueError as error:
        what = names[0] if len(names) == 1 else f"one of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise ValueError(f"image {what}: {error}") from error
