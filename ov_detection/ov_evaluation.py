"""One pass of a detector over a test set, and the record of what it found."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import OmegaConf
from ov_data import OvImageSet
from ov_evaluator import OvEvaluator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from last_vit.checkpoint import file_sha256
from last_vit.lazy_config import write_run_record
from last_vit.runtime import is_main_process


@dataclass(frozen=True)
class OvEvaluation:
    """What one pass found.

    Attributes:
        metrics: As `OvEvaluator.evaluate` names them; {} in every process but the main one.
        num_images: All processes together.
        seconds: Wall time of detection and AP together.
        size: Side of the square that images were brought to, in pixels.
    """

    metrics: dict[str, float]
    num_images: int
    seconds: float
    size: int


def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, kinds: list[str], bf16: bool) -> OvEvaluation:
    """Detect on this process's share of the images, and evaluate in the main process.

    Args:
        model: The bare detector; put into eval mode.
        loader: From `build_ov_test_loader`.
        device: Where the model is.
        kinds: As in `OvEvaluator`.
        bf16: Forward under bfloat16 autocast.

    Returns:
        The `OvEvaluation`.

    Raises:
        ValueError: As in `OvEvaluator`.
    """
    model.eval()
    dataset: OvImageSet = loader.dataset.dataset  # the loader takes a Subset of the data set
    evaluator = OvEvaluator(dataset.json_file, tuple(kinds), dataset.novel, dataset.image_ids)
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = None if is_main_process() else True
        for batch in tqdm(loader, desc="evaluate", unit="batch", disable=hidden, leave=False):
            evaluator.process(batch, model(batch))
    metrics = evaluator.evaluate().get("detection", {})
    comm.synchronize()
    return OvEvaluation(metrics, evaluator.num_images, time.perf_counter() - start, dataset.size)


def write_evaluation(
    result: OvEvaluation,
    cfg: Any,
    clip_source: dict[str, Any],
    vocabulary: dict[str, Any],
    checkpoint: Path,
    device: torch.device,
    row: str | None = None,
    train_seconds: float | None = None,
) -> None:
    """Print an evaluation and write it to results/ as eval_ or train_<output_dir's name>.json, in the main process.

    Args:
        result: From `evaluate`.
        cfg: The run's config.
        clip_source: `FrozenClip.source`.
        vocabulary: What the class embeddings are, for the record.
        checkpoint: The file with the detector's weights.
        device: Where it ran.
        row: Label of its row in README's table; None takes the config's `evaluation.row`, whose "" keeps it out.
        train_seconds: Wall time of the training that has just ended, if one has.
    """
    if not is_main_process():
        return
    for metric, value in {**result.metrics, "images": result.num_images}.items():
        print(f"{metric:>24} {value:8.2f}" if isinstance(value, float) else f"{metric:>24} {value:5d}")
    row = row or cfg.evaluation.row or None
    config = {
        "clip": clip_source,
        "vocabulary": vocabulary,
        "model": OmegaConf.to_container(cfg.model.roi_heads, resolve=True),
        "vision_language_score": cfg.model.vision_language_score,
    }
    path = write_run_record(
        cfg,
        cfg.evaluation.table,
        row,
        result.metrics,
        train_seconds,
        n_images=result.num_images,
        dataset=f"{cfg.evaluation.dataset}, {result.size} px",
        config=config,
        checkpoint_sha256=file_sha256(checkpoint)[:16],
        seconds=result.seconds,
        device=device,
    )
    print(f"written to {path}")
