"""Training and evaluation of a classifier from a config: its parts are built and checked, resumed, and driven."""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from classification_net import ClassificationNet
from cls_evaluator import Evaluation, check_classes, evaluate, write_evaluation
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from torch import Tensor

from last_vit.checkpoint import load_checkpoint, load_strict, read_checkpoint
from last_vit.lazy_config import build_model, launch_run, set_up_run
from last_vit.lazy_run import run_iterations
from last_vit.train_lib import RepeatableSteps, RunCheckpoints, average_gradients, micro_batches

logger = logging.getLogger("detectron2")


class ClsTrainer(RepeatableSteps, SimpleTrainer):
    """Trains on dicts with "image" float [B, 3, H, W] and "label" long [B].

    A process's batch is split into `accumulation_steps` micro-batches; the gradient is that of the whole. The model
    takes (images, labels) -> a dict of losses.
    """

    def __init__(self, *, accumulation_steps: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if accumulation_steps < 1:
            raise ValueError(f"train.accumulation_steps must be at least 1, got {accumulation_steps}")
        self.accumulation_steps = accumulation_steps

    def backward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Gradients of the mean loss over the batch."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
        totals: dict[str, Tensor] = {}
        for part, share in micro_batches(self.model, self.accumulation_steps, (images, labels)):
            with self.autocast():
                losses = self.model(*part)
            (sum(losses.values()) * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * share
        return totals, len(images)


def run(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in all processes."""
    launch_run(args, train_or_evaluate)


def train_or_evaluate(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in this process; ValueError for parts that do not belong together."""
    cfg, device = set_up_run(args, "cls_pretrain/conf.py and configs/")
    model = build_model(cfg.model).to(device)
    if args.eval_only:
        _evaluate_checkpoint(cfg, model, device, args.row)
    else:
        _train(cfg, model, device, args.resume, args.row)


def _train(cfg: Any, model: ClassificationNet, device: torch.device, resume: bool, row: str | None) -> None:
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    check_classes(model.num_classes, train_loader, test_loader, is_taught=model.teacher is not None)
    if cfg.train.compile:
        model.compile()
    options = {name: cfg.train[name] for name in ("seed", "bf16", "clip_grad_norm", "accumulation_steps")}
    parallel = average_gradients(model, cfg.train.get("gradient_compression", "none"))
    trainer = ClsTrainer(model=parallel, data_loader=train_loader, optimizer=optimizer, **options)
    load = partial(load_same_pooling, model)
    checkpoints = RunCheckpoints(trainer, cfg.train.output_dir, {"pooling": model.pooling}, load)
    now = partial(evaluate, model, test_loader, device, **cfg.evaluation)

    def write(result: Evaluation, checkpoint: Path, is_best: bool) -> None:
        seconds = trainer.seconds
        write_evaluation(result, cfg, model, checkpoint, device, row, train_seconds=seconds, is_best=is_best)

    run_iterations(cfg, trainer, checkpoints, now, write, partial(_start_from, model), resume)


def _evaluate_checkpoint(cfg: Any, model: ClassificationNet, device: torch.device, row: str | None) -> None:
    checkpoint = Path(cfg.train.init_checkpoint)
    trained_with = load_checkpoint(model, checkpoint).pooling
    if trained_with is not None and trained_with["pool"] != model.pooling["pool"]:
        raise ValueError(
            f"{checkpoint} was trained with pool {trained_with['pool']!r}, the config pools with "
            f"{model.pooling['pool']!r}: give model.pool={trained_with['pool']}"
        )
    loader = instantiate(cfg.dataloader.test)
    check_classes(model.num_classes, loader, is_taught=model.teacher is not None)
    result = evaluate(model, loader, device, **cfg.evaluation)
    write_evaluation(result, cfg, model, checkpoint, device, row, trained_with=trained_with)


def load_same_pooling(model: ClassificationNet, path: Path) -> dict[str, Any]:
    """Load a checkpoint of a run that is to go on, and return its content.

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


def _start_from(model: ClassificationNet, path: str) -> None:
    loaded = load_checkpoint(model, path)
    logger.info("Starting from %s (layout %s, sha256 %s)", path, loaded.layout, loaded.sha256[:16])
