"""A training run from a config: builds its parts, checks that they belong together, resumes, and drives the trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cls_evaluator import Evaluation, check_classes, evaluate, write_evaluation
from cls_trainer import ClsTrainer
from detectron2.config import instantiate
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from progress_printer import ProgressPrinter
from strict_checkpointer import StrictCheckpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from last_vit.classification_net import ClassificationNet


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
    output_dir = Path(cfg.train.output_dir)
    model = build_model(cfg).to(device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    check_classes(cfg, train_loader, test_loader)
    if cfg.train.compile:
        model.compile()
    wrapped = model if comm.get_world_size() == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    trainer = ClsTrainer(
        wrapped,
        train_loader,
        optimizer,
        device,
        seed=cfg.train.seed,
        bf16=cfg.train.bf16,
        clip_grad_norm=cfg.train.clip_grad_norm,
        accumulation_steps=cfg.train.accumulation_steps,
    )
    checkpointer = StrictCheckpointer(model, output_dir, trainer=trainer)
    evaluations: list[Evaluation] = []

    def run_evaluation() -> dict[str, float]:
        _share_buffers(model)
        evaluations.append(evaluate(model, test_loader, device, **cfg.evaluation))
        model.train()
        return evaluations[-1].metrics

    trainer.register_hooks(_build_hooks(cfg, checkpointer, run_evaluation))
    start_iter = checkpointer.resume(trainer) if resume else 0
    starts = comm.all_gather(start_iter)
    if len(set(starts)) > 1:
        raise ValueError(
            f"the processes would start at different iterations ({starts}): every machine must see the same "
            f"train.output_dir"
        )
    if start_iter > cfg.train.max_iter:
        raise ValueError(
            f"{output_dir} has done {start_iter} iterations, more than train.max_iter={cfg.train.max_iter}"
        )
    if start_iter == 0 and cfg.train.init_checkpoint:
        checkpointer.load_weights(cfg.train.init_checkpoint)
    train_loader.batch_sampler.start_iteration = start_iter
    trainer.train(start_iter, cfg.train.max_iter)
    last_checkpoint = Path(checkpointer.get_checkpoint_file())
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


def _build_hooks(cfg: Any, checkpointer: StrictCheckpointer, run_evaluation: Callable[[], dict]) -> list[HookBase]:
    """detectron2's hooks, in the order in which they run; writing is the main process's.

    The checkpoint comes last: what is resumed from it has then been logged, whenever the run is killed.
    """
    every = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, run_evaluation),
    ]
    if not comm.is_main_process():
        return every
    folder = cfg.train.output_dir
    writers = [ProgressPrinter(cfg.train.max_iter), JSONWriter(f"{folder}/metrics.json"), TensorboardXWriter(folder)]
    return [
        *every,
        hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
    ]


def _share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers (BatchNorm statistics), which are the ones that are saved."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
