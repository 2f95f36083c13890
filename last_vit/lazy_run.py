"""The iterations of a run from a LazyConfig: hooks, checkpoints, the best evaluation so far, and the records."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from omegaconf import OmegaConf

from last_vit.results import RESULTS_DIR, record_name, result_name, write_result
from last_vit.runtime import is_main_process, world_size
from last_vit.stopping import stopping_at_step_borders
from last_vit.train_lib import RunCheckpoints, check_same_start
from last_vit.wandb_log import WandbScalars, open_wandb

logger = logging.getLogger("detectron2")  # also writes the run's log.txt


def run_iterations(
    cfg: Any,
    trainer: SimpleTrainer,
    checkpoints: RunCheckpoints,
    evaluate: Callable[[], Any],
    write: Callable[[Any, Path, bool], None],
    start_from: Callable[[str], Any],
    resume: bool,
) -> None:
    """Train to `train.max_iter`, evaluating on the way and at the end; with `resume` from the last checkpoint on.

    `cfg` has lr_multiplier and train; the data loader of `trainer`, a `RepeatableSteps`, has a batch sampler with a
    `start_iteration`; `checkpoints` are the trainer's. `evaluate` measures the model now, and what it returns has
    `metrics`, name -> number. `write` keeps the record of an evaluation, of the checkpoint with its weights, in the
    main process: the last one's, and, told so, that of each which has the highest `train.best_metric` so far.
    `start_from` loads `train.init_checkpoint` where there is nothing to resume.

    ValueError for a number of iterations or a period below 1, a run that is longer than the config's already, processes
    that see different folders, or a checkpoint that does not fit; FloatingPointError for a loss, gradient norm or
    weight that is not finite.
    """
    train, evaluations = cfg.train, []
    best = _Best(cfg, checkpoints, write)
    _check_numbers(train)

    def run_evaluation() -> dict[str, float]:
        if world_size() > 1:  # the main process's BatchNorm statistics are the ones that are saved
            for buffer in trainer.model.buffers():
                dist.broadcast(buffer, src=0)
        evaluations.append(evaluate())
        trainer.model.train()
        found = "  ".join(f"{name} {value:.2f}" for name, value in evaluations[-1].metrics.items())
        iteration = min(trainer.iter, train.max_iter - 1)
        logger.info("After %d iterations: %s", iteration + 1, found)
        if is_main_process():
            best.keep(evaluations[-1], iteration)
        return dict(evaluations[-1].metrics)

    trainer.read_periods = train.log_period, train.eval_period, train.checkpointer.period, train.get("save_period", 0)
    trainer.register_hooks(_build_hooks(cfg, checkpoints, run_evaluation))
    start_iter = checkpoints.resume() if resume else 0
    check_same_start(start_iter, train.output_dir)
    if start_iter > train.max_iter:
        raise ValueError(
            f"{train.output_dir} has done {start_iter} iterations, more than train.max_iter={train.max_iter}"
        )
    if start_iter > 0:
        best.resume()
    elif train.init_checkpoint:
        start_from(train.init_checkpoint)
    trainer.data_loader.batch_sampler.start_iteration = start_iter
    with stopping_at_step_borders():
        trainer.train(start_iter, train.max_iter)
    if is_main_process():
        write(evaluations[-1], Path(checkpoints.get_checkpoint_file()), False)


class _Best:
    """The evaluation with the highest `train.best_metric` so far, as model_best.pth and best_<run>.json."""

    def __init__(self, cfg: Any, checkpoints: RunCheckpoints, write: Callable[[Any, Path, bool], None]) -> None:
        self._metric, self._value = cfg.train.get("best_metric", ""), -math.inf
        self._record = Path(cfg.train.output_dir) / f"{_run_name(cfg, 'best')}.json"
        self._checkpoints, self._write = checkpoints, write

    def resume(self) -> None:
        """Go on from the record."""
        if self._record.is_file():
            self._value = json.loads(self._record.read_bytes())["metrics"].get(self._metric, -math.inf)

    def keep(self, result: Any, iteration: int) -> None:
        """Keep an evaluation if it is better than those before."""
        value = result.metrics.get(self._metric)
        if self._metric and value is None:
            logger.warning("No best evaluation is kept: train.best_metric %r is none of its numbers", self._metric)
        elif value is not None and value > self._value:
            self._value = value
            self._write(result, self._checkpoints.save_weights("model_best", iteration=iteration), True)
            logger.info("The best %s so far", self._metric)


def _check_numbers(train: Any) -> None:
    """Hooks divide by these; only the last two may be 0."""
    numbers = (train.max_iter, train.log_period, train.checkpointer.period)
    for name, number in zip(("max_iter", "log_period", "checkpointer.period"), numbers, strict=True):
        if number < 1:
            raise ValueError(f"train.{name} must be at least 1 iteration, got {number}")
    for name in ("eval_period", "save_period"):
        if train.get(name, 0) < 0:
            raise ValueError(f"train.{name} must be 0 (none before the end) or more, got {train[name]}")


class _Writer(hooks.PeriodicWriter):
    """detectron2's, which divides by zero where a run stops within its first iterations and would be logged twice."""

    def after_train(self) -> None:
        """Write the last evaluation of a run that came to its end, and close."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
        else:
            for writer in self._writers:
                writer.close()


class _LatestCheckpoint(HookBase):
    """Saves model_latest.pth, each over the one before, every `period` iterations (0 is never) but with `others`."""

    def __init__(self, checkpoints: RunCheckpoints, period: int, others: int) -> None:
        self._checkpoints, self._period, self._others = checkpoints, period, others

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_saved = done % self._others == 0 or done == self.trainer.max_iter
        if self._period and done % self._period == 0 and not is_saved:
            self._checkpoints.save("model_latest", iteration=self.trainer.iter)


class _WandbWriter(WandbScalars, EventWriter):
    def write(self) -> None:
        self.log_latest(get_event_storage().latest(), get_event_storage().iter)


def _build_hooks(cfg: Any, checkpoints: RunCheckpoints, evaluate: Callable[[], dict[str, float]]) -> list[HookBase]:
    """detectron2's hooks, in the order in which they run; writing is the main process's.

    The checkpoint comes last: what is resumed from it has then been logged, whenever the run is killed.
    """
    every = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, evaluate),
    ]
    if not is_main_process():
        return every
    out = cfg.train.output_dir
    writers = [CommonMetricPrinter(cfg.train.max_iter), JSONWriter(f"{out}/metrics.json"), TensorboardXWriter(out)]
    if cfg.train.get("wandb"):
        writers.append(_WandbWriter(open_wandb(out, OmegaConf.to_container(cfg.train, resolve=True))))
    return [
        *every,
        _Writer(writers, period=cfg.train.log_period),
        _LatestCheckpoint(checkpoints, cfg.train.get("save_period", 0), cfg.train.checkpointer.period),
        hooks.PeriodicCheckpointer(checkpoints, **cfg.train.checkpointer),
    ]


def write_run_record(
    cfg: Any,
    table: str,
    row: str | None,
    metrics: Mapping[str, float],
    train_seconds: float | None,
    is_best: bool = False,
    **about: Any,
) -> Path:
    """Write a run's record, in the main process only, and return its file; the arguments are those of `write_result`.

    Without a `row` it stays in `train.output_dir`, else it goes into results/. `train_seconds`, the wall time of the
    training so far, is recorded with the config's training switches; None for an evaluation. The record of the best
    evaluation of a training always stays beside its weights.
    """
    if train_seconds is not None:
        train = OmegaConf.to_container(cfg.train, resolve=True)
        train |= {"batch_size_per_process": cfg.dataloader.train.batch_size, "lr": cfg.optimizer.lr}
        about["config"] = {**about["config"], "train": train, "train_seconds": round(train_seconds, 1)}
    name = _run_name(cfg, "eval" if train_seconds is None else "best" if is_best else "train")
    if row is None or is_best:
        return write_result(name, metrics, directory=Path(cfg.train.output_dir), **about)
    unique = record_name(name, about["dataset"], about["config"], about["checkpoint_sha256"])
    return write_result(unique, metrics, directory=RESULTS_DIR, table=table, row=row, **about)


def _run_name(cfg: Any, kind: str) -> str:
    return result_name(f"{kind}_{Path(cfg.train.output_dir).name}")
