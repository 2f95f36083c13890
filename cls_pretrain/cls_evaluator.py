"""Top-1, top-5 and Point-in-Box of a classifier in one pass over a validation set (the paper's figure 3)."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from classification_net import ClassificationNet
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from last_vit.boxes import is_small_box
from last_vit.checkpoint import file_sha256
from last_vit.data.imagenet import ImageNetDataset
from last_vit.evaluation import print_table, progress
from last_vit.lazy_config import write_run_record
from last_vit.metrics import PointInBox, TopK
from last_vit.patch_hit import count_patch_hits
from last_vit.results import dataset_name
from last_vit.runtime import is_main_process


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a validation set found; the same in every process."""

    metrics: dict[str, float]  # "acc1", "acc5" and, where there are boxes, "point_in_box" with its baselines; percent
    num_images: int  # that accuracy is over, all processes together
    num_boxes: int  # single-object images that Point-in-Box is over; 0 without boxes
    seconds: float  # of the loop


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    hit_rule: str = "release",
    max_box_area: float | None = None,
) -> Evaluation:
    """Evaluate a model, put into eval mode, on this process's share of the data and sum over processes.

    Args:
        model: Any host that `dense_forward` reads.
        loader: From `build_test_loader`, over a data set whose `transform` tells resize and crop.
        device: Where the model is.
        hit_rule: As in `PointInBox`.
        max_box_area: Point-in-Box leaves out boxes of at least this share of their image; None keeps all.

    Raises:
        ValueError: No images; logits and labels that do not fit.
    """
    model.eval()
    transform = loader.dataset.dataset.transform  # the loader takes a Subset of the data set
    top_k, point_in_box = TopK(), PointInBox(transform.crop, transform.resize, hit_rule)
    batches = _keep_small_boxes(progress(loader, "evaluate"), max_box_area)
    start = time.perf_counter()
    count_patch_hits(model, batches, device, point_in_box, top_k)
    metrics: dict[str, float] = dict(top_k.compute())
    num_images, num_boxes = int(metrics.pop("num_images")), point_in_box.count()
    if num_boxes:
        metrics.update(point_in_box.compute())
        metrics.pop("num_images")
    return Evaluation(metrics, num_images, num_boxes, time.perf_counter() - start)


def check_classes(cfg: Any, *loaders: DataLoader) -> None:
    """Number a subset of the model's classes as its head does; refuse classes that this cannot make the same.

    Raises:
        ValueError: Data sets of other classes, without known labels, or of another number than `num_classes`.
    """
    data_sets = [loader.dataset.dataset for loader in loaders]
    first = data_sets[0]
    num_classes = OmegaConf.select(cfg, "model.model.num_classes")
    if num_classes is not None:
        for images in data_sets:
            if isinstance(images, ImageNetDataset):
                images.number_as(num_classes)
    if num_classes is not None and len(first.classes) != num_classes:
        raise ValueError(
            f"{first!r} has {len(first.classes)} classes, the model {num_classes}: set model.model.num_classes, or "
            f"point the root to the data that the model is for"
        )
    for other in data_sets[1:]:
        if list(other.classes) != list(first.classes):
            differing = sorted(set(first.classes) ^ set(other.classes))[:5]
            raise ValueError(
                f"labels would not mean the same: {first!r} and {other!r} have different classes (such as "
                f"{', '.join(map(str, differing))}); classes are numbered by sorted folder name"
            )


def write_evaluation(
    result: Evaluation,
    cfg: Any,
    model: ClassificationNet,
    checkpoint: Path,
    device: torch.device,
    row: str | None,
    trained_with: dict[str, Any] | None = None,
    train_seconds: float | None = None,
) -> None:
    """Print an evaluation of `checkpoint` and keep its record, in the main process.

    `trained_with` is the pooling that the checkpoint records, if it does; `row` and `train_seconds` are those of
    `write_run_record`.
    """
    if not is_main_process():
        return
    counts = [["images", str(result.num_images)], ["single-object boxes", str(result.num_boxes)]]
    print_table([*([metric, f"{value:.2f}"] for metric, value in result.metrics.items()), *counts])
    test = cfg.dataloader.test.dataset
    data = dataset_name(test.root, test.split) if "root" in test else "synthetic"
    options = OmegaConf.to_container(cfg.evaluation, resolve=True)
    config = {"pooling": model.pooling, "num_boxes": result.num_boxes, "evaluation": options}
    if trained_with is not None:
        config["trained_with"] = trained_with
    path = write_run_record(
        cfg,
        "cls_pretrain",
        row,
        result.metrics,
        train_seconds,
        n_images=result.num_images,
        dataset=f"{data} {test.split}, {test.transform.crop} px",
        config=config,
        checkpoint_sha256=file_sha256(checkpoint)[:16],
        seconds=result.seconds,
        device=device,
    )
    print(f"written to {path}")


def _keep_small_boxes(batches: DataLoader, max_box_area: float | None) -> Iterator[Mapping[str, Tensor]]:
    """The batches with NaN in place of every box of at least `max_box_area` of its image."""
    for batch in batches:
        if max_box_area is not None:
            is_small = is_small_box(batch["box_xyxy"], batch["image_hw"], max_box_area)
            batch["box_xyxy"] = batch["box_xyxy"].masked_fill(~is_small[:, None], float("nan"))
        yield batch
