"""A training run from a config: builds its parts, checks that they belong together, resumes, and drives the trainer."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from classification_net import ClassificationNet
from cls_evaluator import Evaluation, check_classes, evaluate, write_evaluation
from cls_trainer import ClsTrainer
from detectron2.config import instantiate
from progress_printer import ProgressPrinter
from torch.nn.parallel import DistributedDataParallel

from last_vit.checkpoint import load_checkpoint, load_strict, read_checkpoint
from last_vit.lazy.checkpoints import RunCheckpoints
from last_vit.lazy.run import run_iterations, share_buffers
from last_vit.runtime import world_size

logger = logging.getLogger("detectron2")


def train(cfg: Any, device: torch.device, resume: bool, row: str | None = None) -> dict[str, float]:
    """Train what a config describes to `train.max_iter`, evaluate, and write the record.

    Args:
        cfg: LazyConfig with model, optimizer, lr_multiplier, dataloader, evaluation and train.
        device: This process's device.
        resume: Continue from the last checkpoint in `train.output_dir`.
        row: As in `write_evaluation`.

    Returns:
        Metrics of the evaluation after the last iteration.

    Raises:
        ValueError: Data sets, model, checkpoint and config that do not belong together.
        FloatingPointError: A loss, gradient norm or weight is not finite.
    """
    model = build_model(cfg).to(device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    check_classes(cfg, train_loader, test_loader)
    if cfg.train.compile:
        model.compile()
    wrapped = model
    if world_size() > 1:
        wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    trainer = ClsTrainer(
        model=wrapped,
        data_loader=train_loader,
        optimizer=optimizer,
        seed=cfg.train.seed,
        bf16=cfg.train.bf16,
        clip_grad_norm=cfg.train.clip_grad_norm,
        accumulation_steps=cfg.train.accumulation_steps,
    )
    about, load = {"pooling": model.pooling}, partial(load_same_pooling, model)
    checkpoints = RunCheckpoints(model, cfg.train.output_dir, trainer, about, load)
    evaluations: list[Evaluation] = []

    def run_evaluation() -> dict[str, float]:
        share_buffers(model)
        evaluations.append(evaluate(model, test_loader, device, **cfg.evaluation))
        model.train()
        return evaluations[-1].metrics

    printer, start_from = ProgressPrinter(cfg.train.max_iter), partial(load_weights, model)
    last_checkpoint = run_iterations(cfg, trainer, checkpoints, run_evaluation, start_from, printer, resume)
    write_evaluation(evaluations[-1], cfg, model, last_checkpoint, device, row=row, train_seconds=trainer.seconds)
    return evaluations[-1].metrics


def build_model(cfg: Any) -> ClassificationNet:
    """The config's model.

    Raises:
        ValueError: Arguments that the host refuses, whatever it raises for them.
    """
    try:
        return instantiate(cfg.model)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"the config's model cannot be built ({type(error).__name__}): {error}") from error


def load_same_pooling(model: ClassificationNet, path: Path) -> dict[str, Any]:
    """Load a checkpoint of a run that is to go on.

    Args:
        model: Takes the weights.
        path: Of `RunCheckpoints`.

    Returns:
        The file's content.

    Raises:
        ValueError: The checkpoint does not fit the model or was trained with another pooling.
    """
    checkpoint = read_checkpoint(path)
    if "pooling" not in checkpoint:
        raise ValueError(
            f"{path} does not record its pooling, so no run of this trainer wrote it: start a new one from it with "
            f"train.init_checkpoint"
        )
    if checkpoint["pooling"] != model.pooling:
        raise ValueError(
            f"{path} was trained with {checkpoint['pooling']}, the config says {model.pooling}; resume "
            f"with the run's own options, or start a new one from it with train.init_checkpoint"
        )
    load_strict(model, checkpoint["model"])
    return checkpoint


def load_weights(model: ClassificationNet, path: str) -> None:
    """Start from the weights of any checkpoint that `last_vit.checkpoint` reads."""
    loaded = load_checkpoint(model, path)
    logger.info("Starting from %s (layout %s, sha256 %s)", path, loaded["layout"], loaded["sha256"])
