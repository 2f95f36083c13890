"""Top-1, top-5 and Point-in-Box of a classifier in one pass over a validation set (the paper's figure 3)."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from last_vit.boxes import box_area
from last_vit.dense import dense_forward
from last_vit.metrics.point_in_box import PointInBox
from last_vit.metrics.top_k import TopK
from last_vit.patch_score import patch_score
from last_vit.results import write_result
from last_vit.runtime import all_reduce_sum, is_main_process

logger = logging.getLogger("detectron2")


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a validation set found; the same in every process.

    Attributes:
        metrics: "acc1", "acc5" and, where the data have boxes, "point_in_box" with its two baselines; percent.
        num_images: Images that accuracy is over, all processes together.
        num_boxes: Single-object images that Point-in-Box is over; 0 without boxes.
        seconds: Wall time of the loop.
    """

    metrics: dict[str, float]
    num_images: int
    num_boxes: int
    seconds: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    hit_rule: str = "release",
    max_box_area: float | None = None,
) -> Evaluation:
    """Evaluate a model on this process's share of the data and sum over processes.

    Args:
        model: Any host that `dense_forward` reads; put into eval mode.
        loader: Yields dicts with "image", "label" and, for Point-in-Box, "box_xyxy" and "image_hw"; its data set's
            `transform` tells resize and crop.
        device: Where the model is.
        hit_rule: As in `PointInBox`.
        max_box_area: Point-in-Box leaves out boxes of at least this share of their image; None keeps all.

    Returns:
        The `Evaluation`.

    Raises:
        ValueError: No images; logits and labels that do not fit.
    """
    model.eval()
    transform = loader.dataset.dataset.transform  # build_test_loader takes a Subset of the data set
    top_k, point_in_box = TopK(), PointInBox(transform.crop, transform.resize, hit_rule)
    num_boxes = torch.zeros((), dtype=torch.long)
    start = time.perf_counter()
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=None if is_main_process() else True, leave=False):
        out = dense_forward(model, batch["image"].to(device, non_blocking=True))
        top_k.update(out.logits, batch["label"].to(device))
        boxes = _keep_small(batch["box_xyxy"], batch["image_hw"], max_box_area)
        num_boxes += (~boxes.isnan().any(dim=1)).sum()
        score = patch_score(out.patch_tokens, out.global_token)
        point_in_box.update(score, boxes, batch["image_hw"], out.grid_hw)
    metrics: dict[str, float] = dict(top_k.compute())
    num_images = int(metrics.pop("num_images"))
    total_boxes = int(all_reduce_sum(num_boxes))
    if total_boxes:
        metrics.update(point_in_box.compute())
        metrics.pop("num_images")
    return Evaluation(metrics, num_images, total_boxes, time.perf_counter() - start)


def write_evaluation(result: Evaluation, cfg: Any, model: nn.Module, loaded: dict, device: torch.device) -> None:
    """Print an evaluation and write results/<train.output_dir's name>_eval.json, in the main process."""
    if not is_main_process():
        return
    for name, value in result.metrics.items():
        print(f"{name:>22} {value:7.2f}")
    print(f"{'images':>22} {result.num_images:7d}\n{'single-object boxes':>22} {result.num_boxes:7d}")
    test = cfg.dataloader.test.dataset
    path = write_result(
        f"{Path(cfg.train.output_dir).name}_eval",
        result.metrics,
        n_images=result.num_images,
        dataset=f"{test.get('root', 'synthetic')} {test.split}",
        config={"pooling": model.pooling, "num_boxes": result.num_boxes, **cfg.evaluation},
        checkpoint_sha256=loaded["sha256"],
        seconds=result.seconds,
        device=device,
    )
    print(f"written to {path}")


def _keep_small(boxes_xyxy: Tensor, image_hw: Tensor, max_box_area: float | None) -> Tensor:
    """Boxes of at least `max_box_area` of their image become NaN: not counted."""
    if max_box_area is None:
        return boxes_xyxy
    too_large = box_area(boxes_xyxy) >= max_box_area * image_hw.prod(dim=1)
    return boxes_xyxy.masked_fill(too_large[:, None], float("nan"))
