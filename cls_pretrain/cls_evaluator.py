"""Top-1, top-5 and Point-in-Box of a classifier in one pass over a validation set (the paper's figure 3).

Of a distilled one also the agreement with its teacher; the others where the images have labels and boxes.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from classification_net import ClassificationNet
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from last_vit.boxes import is_small_box
from last_vit.checkpoint import file_sha256
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.imagenet_layout import has_split
from last_vit.dense import dense_batches
from last_vit.evaluation import print_table, progress
from last_vit.lazy_run import write_run_record
from last_vit.metrics import PointInBox, TopK
from last_vit.patch_scores import patch_score
from last_vit.results import dataset_name
from last_vit.runtime import is_main_process


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a validation set found; the same in every process."""

    # percent, each where it can be known: teacher_agreement, acc1, acc5, teacher_acc1, point_in_box with its baselines
    metrics: dict[str, float]
    num_images: int  # all processes together
    num_boxes: int  # single-object images that Point-in-Box is over; 0 without boxes
    side: int  # of the square images, in pixels
    seconds: float  # of the loop


def evaluate(
    model: ClassificationNet,
    loader: DataLoader,
    device: torch.device,
    hit_rule: str = "release",
    max_box_area: float | None = None,
) -> Evaluation:
    """Evaluate a model, put into eval mode, on this process's share of the data and sum over processes.

    The loader is from `build_test_loader`, over a data set whose `transform` tells resize and crop; its images have
    labels if it has `classes`. Point-in-Box leaves out boxes of at least `max_box_area` of their image; None keeps all.
    ValueError for no images, logits and labels that do not fit, and neither labels, teacher nor boxes.
    """
    model.eval()
    images = loader.dataset.dataset  # the loader takes a Subset of the data set
    transform, has_labels, teacher = images.transform, len(images.classes) > 0, model.teacher
    top_k, agreement, teacher_top_k = TopK(), TopK((1,)), TopK((1,))
    point_in_box = PointInBox(transform.crop, transform.resize, hit_rule)
    batches = _keep_small_boxes(progress(loader, "evaluate"), max_box_area)
    start = time.perf_counter()
    for output, batch in dense_batches(model, batches, device):
        score = patch_score(output.patch_tokens, output.global_token)
        point_in_box.update(score, batch["box_xyxy"], batch["image_hw"], output.grid_hw)
        if has_labels:
            top_k.update(output.logits, batch["label"])
        if teacher is not None:
            with torch.inference_mode():
                target = teacher(batch["image"])
            agreement.update(output.logits, target.argmax(dim=1))
            teacher_top_k.update(target, batch["label"])
    metrics: dict[str, float] = {}
    if teacher is not None:
        metrics["teacher_agreement"] = agreement.compute()["acc1"]
    if teacher is not None and has_labels:
        metrics["teacher_acc1"] = teacher_top_k.compute()["acc1"]
    if has_labels:
        metrics.update(top_k.compute())
    num_boxes = point_in_box.count()
    if num_boxes:
        metrics.update(point_in_box.compute())
    metrics.pop("num_images", None)
    return Evaluation(metrics, len(images), num_boxes, transform.crop, time.perf_counter() - start)


def check_classes(num_classes: int | None, *loaders: DataLoader, is_taught: bool = False) -> None:
    """Number a subset of the model's classes as its head does; refuse classes that this cannot make the same.

    Where a teacher tells what to learn (`is_taught`), data sets that need no labels may have other classes or none.
    ValueError: Data sets of other classes, without known labels, or of another number than `num_classes`.
    """
    data_sets = [loader.dataset.dataset for loader in loaders]
    new_head = "set its num_classes (model.num_classes or model.model.num_classes)"
    if num_classes is not None:
        for images in data_sets:
            if isinstance(images, ImageNetDataset):
                try:
                    images.number_as(num_classes)
                except ValueError as error:
                    raise ValueError(f"{error}; for a new head {new_head}") from error
    data_sets = [images for images in data_sets if not is_taught or getattr(images, "labelled", True)]
    first = data_sets[0] if data_sets else None
    if data_sets and num_classes is not None and len(first.classes) != num_classes:
        raise ValueError(
            f"{first!r} has {len(first.classes)} classes, the model {num_classes}: {new_head}, or point the root to "
            "the data that the model is for"
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
    is_best: bool = False,
) -> None:
    """Print an evaluation of `checkpoint` and keep its record, in the main process.

    `trained_with` is the pooling that the checkpoint records, if it does; `row`, `train_seconds` and `is_best` are
    those of `write_run_record`.
    """
    if not is_main_process():
        return
    counts = [["images", str(result.num_images)], ["single-object boxes", str(result.num_boxes)]]
    if not is_best:
        print_table([*([metric, f"{value:.2f}"] for metric, value in result.metrics.items()), *counts])
    test = cfg.dataloader.test.dataset
    data = dataset_name(test.root, test.split) if "root" in test else "synthetic"
    is_whole_folder = not (test.get("labelled", True) or has_split(test.root, test.split))
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
        is_best,
        n_images=result.num_images,
        dataset=f"{data} {'all' if is_whole_folder else test.split}, {result.side} px",
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
