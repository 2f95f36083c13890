"""The iterations of a LazyConfig run: started or resumed, and driven by detectron2's hooks.

Imports detectron2 only when called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from last_vit.lazy.checkpoints import RunCheckpoints
from last_vit.runtime import is_main_process, world_size

if TYPE_CHECKING:
    from detectron2.engine import HookBase, SimpleTrainer
    from detectron2.utils.events import EventWriter


def run_iterations(
    cfg: Any,
    trainer: SimpleTrainer,
    checkpoints: RunCheckpoints,
    evaluate: Callable[[], dict[str, float]],
    start_from: Callable[[str], Any],
    printer: EventWriter,
    resume: bool,
) -> Path:
    """Train to `train.max_iter`, evaluating on the way and at the end.

    Args:
        cfg: With lr_multiplier and train.
        trainer: A `RepeatableSteps` whose data loader's batch sampler has a `start_iteration`.
        checkpoints: Of the same trainer, in `train.output_dir`.
        evaluate: The model's metrics now; it leaves the model in training mode.
        start_from: Loads `train.init_checkpoint`, where there is one and nothing to resume.
        printer: Writes the log's lines.
        resume: Continue from the last checkpoint.

    Returns:
        The last checkpoint, of the weights that were evaluated last.

    Raises:
        ValueError: A number of iterations or a period below 1, a run that is longer than the config's already,
            processes that see different folders, or a checkpoint that does not fit.
        FloatingPointError: A loss, gradient norm or weight is not finite.
    """
    _check_numbers(cfg.train)
    trainer.read_periods = cfg.train.log_period, cfg.train.eval_period, cfg.train.checkpointer.period
    trainer.register_hooks(_build_hooks(cfg, checkpoints, evaluate, printer))
    start_iter, max_iter = checkpoints.resume() if resume else 0, cfg.train.max_iter
    _check_start(start_iter, max_iter, cfg.train.output_dir)
    if start_iter == 0 and cfg.train.init_checkpoint:
        start_from(cfg.train.init_checkpoint)
    trainer.data_loader.batch_sampler.start_iteration = start_iter
    trainer.train(start_iter, max_iter)
    return Path(checkpoints.get_checkpoint_file())


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers (BatchNorm statistics), which are the ones that are saved."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _check_numbers(train: Any) -> None:
    """detectron2's hooks divide by these; only train.eval_period may be 0, for no evaluation before the end."""
    numbers = {"max_iter": train.max_iter, "log_period": train.log_period}
    for name, number in {**numbers, "checkpointer.period": train.checkpointer.period}.items():
        if number < 1:
            raise ValueError(f"train.{name} must be at least 1 iteration, got {number}")
    if train.eval_period < 0:
        raise ValueError(
            f"train.eval_period must be 0 (none before the end) or more iterations, got {train.eval_period}"
        )


def _check_start(start_iter: int, max_iter: int, output_dir: str) -> None:
    from detectron2.utils import comm

    starts = comm.all_gather(start_iter)
    if len(set(starts)) > 1:
        raise ValueError(
            f"the processes would start at different iterations ({starts}): every machine must see the same "
            f"train.output_dir"
        )
    if start_iter > max_iter:
        raise ValueError(f"{output_dir} has done {start_iter} iterations, more than train.max_iter={max_iter}")


def _build_hooks(
    cfg: Any, checkpoints: RunCheckpoints, evaluate: Callable[[], dict[str, float]], printer: EventWriter
) -> list[HookBase]:
    """detectron2's hooks, in the order in which they run; writing is the main process's.

    The checkpoint comes last: what is resumed from it has then been logged, whenever the run is killed.
    """
    from detectron2.config import instantiate
    from detectron2.engine import hooks
    from detectron2.utils.events import JSONWriter, TensorboardXWriter

    every = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, evaluate),
    ]
    if not is_main_process():
        return every
    folder = cfg.train.output_dir
    writers = [printer, JSONWriter(f"{folder}/metrics.json"), TensorboardXWriter(folder)]
    return [
        *every,
        hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        hooks.PeriodicCheckpointer(checkpoints, **cfg.train.checkpointer),
    ]
