"""Runs that a detectron2 LazyConfig describes: strict overrides, processes, checkpoints, iterations and the record."""

import argparse
import difflib
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase, SimpleTrainer, default_setup, hooks, launch
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.multiprocessing import ProcessExitedException

from last_vit.command_line import ending
from last_vit.results import RESULTS_DIR, record_name, result_name, write_result
from last_vit.runtime import is_main_process, process_group, rank, world_size
from last_vit.stopping import ending_at_sigterm, hold_folder, passing_signals_on, stopping_at_step_borders
from last_vit.train_lib import RunCheckpoints, check_same_start, turn_on_fused_pool
from last_vit.wandb_log import WandbScalars, open_wandb

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
logger = logging.getLogger("detectron2")  # also writes the run's log.txt


def launch_run(args: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> None:
    """Call `run(args)` in every process of --num-gpus and --num-machines, or torchrun's; on CPUs where there is no GPU.

    ValueError: More processes than GPUs, or machines without a meeting point. SystemExit: A spawned process failed, and
    has said why.
    """
    num_gpus = torch.cuda.device_count()
    if args.num_gpus < 1 or (num_gpus and args.num_gpus > num_gpus):
        raise ValueError(f"--num-gpus must be in [1, {num_gpus or 'the number of cores'}], got {args.num_gpus}")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://<first machine>:<port>")
    if dist.is_torchelastic_launched() or args.num_gpus * args.num_machines == 1:
        with process_group():
            run(args)
        return
    try:
        with passing_signals_on():
            launch(_run_spawned, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, run))
    except ProcessExitedException as error:  # of one that a signal ended the code is negative
        raise SystemExit(error.exit_code if error.exit_code >= 0 else 128 - error.exit_code) from None


def _run_spawned(args: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> None:
    """`run` in a process of detectron2's launcher, which would wrap a user's error into two stack traces."""
    with ending_at_sigterm():
        try:
            run(args)
        except (Exception, KeyboardInterrupt) as error:
            status, line = ending("lazy_train.py", error)
            if not status:
                raise
            if line:
                print(f"{line.rstrip()} (process {rank()})", file=sys.stderr, flush=True)
            raise SystemExit(status) from None
        finally:
            dist.destroy_process_group()  # whose threads would abort the process as it ends


def set_up_run(args: argparse.Namespace, recipes: str) -> tuple[Any, torch.device]:
    """The config with its overrides and this process's device, with seed, log, folder and fused pooling set up.

    ValueError: A run holds `train.output_dir`. FileExistsError: `train.output_dir` has checkpoints and neither --resume
    nor --eval-only was given. FileNotFoundError, ValueError: As `read_config`; --eval-only without
    `train.init_checkpoint`.
    """
    cfg = read_config(args.config_file, args.opts, recipes)
    output_dir = Path(cfg.train.output_dir)
    if not args.eval_only and is_main_process():
        hold_folder(output_dir)
    if not (args.resume or args.eval_only) and (output_dir / "last_checkpoint").exists():
        raise FileExistsError(
            f"{output_dir} holds the checkpoints of an earlier run: continue it with --resume, or choose another "
            f"train.output_dir"
        )
    if args.eval_only and not cfg.train.init_checkpoint:
        raise ValueError("--eval-only needs train.init_checkpoint=/path/to/checkpoint.pth")
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))  # it would write the file in colours
    logger.info("Config %s:\n%s", args.config_file, Path(args.config_file).read_text(encoding="utf-8"))
    for handler in logger.handlers:  # stack traces go to log.txt alone
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(lambda entry: entry.exc_info is None)
    if cfg.train.get("fused_pool"):
        turn_on_fused_pool()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return cfg, device


def read_config(file: str, overrides: Sequence[str], recipes: str) -> Any:
    """The config of a .py file with overrides; FileNotFoundError names the folder of recipes."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"no config file {file}; the recipes are {recipes}")
    return apply_overrides(load_file(file), overrides)


def load_file(path: str | Path) -> Any:
    """A LazyConfig file; classes of its trainer are found beside it or its configs/, whichever command asks."""
    path = Path(path).resolve()
    folder = next((above.parent for above in path.parents if above.name == "configs"), path.parent)
    before = sys.path.copy()
    sys.path += [str(folder)]
    try:
        return LazyConfig.load(str(path))
    finally:
        sys.path[:] = before


def apply_overrides(cfg: Any, overrides: Sequence[str]) -> Any:
    """Change a LazyConfig in place and return it; detectron2 itself adds a mistyped key without a word.

    Overrides are "a.b=value", in detectron2's syntax. A key must be in the config, or be a parameter of the call that
    the config describes there (`model.top_k` for a `LazyCall(ClassificationNet)(model=...)`).
    ValueError: An override without "=", an unknown key (the message lists the allowed ones and the nearest), or a value
    of another kind than the config's own, but for null where the call takes None by default.
    """
    before = {}
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ValueError(f"an override looks like key=value, got {override!r}")
        _check_key(cfg, key)
        before[key] = OmegaConf.select(cfg, key)
    try:
        LazyConfig.apply_overrides(cfg, list(overrides))
    except Exception as error:  # hydra's parser raises its own kinds
        raise ValueError(f"cannot apply the overrides {list(overrides)}: {error}") from error
    for key, old in before.items():
        parent, _, name = key.rpartition(".")
        parameter = _parameters(OmegaConf.select(cfg, parent) if parent else cfg).get(name)
        new = OmegaConf.select(cfg, key)
        if not (new is None and parameter is not None and parameter.default is None):
            _check_value(key, old, new)
    return cfg


def _check_key(cfg: Any, key: str) -> None:
    node, parts = cfg, key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            allowed = [str(i) for i in range(len(node))]
        else:
            names = {str(name) for name in node} if isinstance(node, DictConfig) else set()
            allowed = sorted(names | set(_parameters(node)) - {"_target_"})
        if part not in allowed:
            above = ".".join(parts[:depth]) or "the config"
            close = difflib.get_close_matches(part, allowed, n=1)
            hint = f"; did you mean {'.'.join([*parts[:depth], close[0]])}?" if close else ""
            raise ValueError(f"unknown override key {key!r}: {above} has {', '.join(allowed) or 'no keys'}{hint}")
        if depth + 1 < len(parts):
            node = node[int(part)] if isinstance(node, ListConfig) else node.get(part)


def _check_value(key: str, old: Any, new: Any) -> None:
    """Refuse a plain value of another kind than the config's own, which would fail far from here."""
    numbers = isinstance(old, float) or key.endswith("top_k")  # top_k is a number of patches or a share of them
    allowed = (int, float) if numbers and isinstance(old, int | float) else type(old)
    is_plain = isinstance(old, bool | int | float | str)
    if is_plain and (not isinstance(new, allowed) or isinstance(new, bool) != isinstance(old, bool)):
        hint = f"; quote text that looks like another kind: '{key}=\"{new}\"'" if isinstance(old, str) else ""
        kind = (
            "a number of patches or a share such as 0.25" if key.endswith("top_k") else f"of type {type(old).__name__}"
        )
        raise ValueError(f"{key} must be {kind} (it was {old!r}), got {new!r}{hint}")


def _parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of the call that a config node describes; none for a plain node."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return {}
    try:
        parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (TypeError, ValueError):  # some C functions have none
        return {}
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in _VARIADIC}


def build_model(node: Any) -> nn.Module:
    """What a config's `model` describes; ValueError for arguments that it refuses, whatever it raises for them."""
    try:
        return instantiate(node)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"the config's model cannot be built ({type(error).__name__}): {error}") from error


def run_iterations(
    cfg: Any,
    trainer: SimpleTrainer,
    checkpoints: RunCheckpoints,
    evaluate: Callable[[], Any],
    write: Callable[[Any, Path, bool], Path],
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

    def __init__(self, cfg: Any, checkpoints: RunCheckpoints, write: Callable[[Any, Path, bool], Path]) -> None:
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
            logger.warning(
                "No evaluation is kept as the best: train.best_metric %r is none of its numbers", self._metric
            )
        elif value is not None and value > self._value:
            self._value = value
            self._write(result, self._checkpoints.save_weights("model_best", iteration=iteration), True)
            logger.info("The best %s so far", self._metric)


def _check_numbers(train: Any) -> None:
    """detectron2's hooks divide by these; only train.eval_period may be 0, for no evaluation before the end."""
    numbers = (train.max_iter, train.log_period, train.checkpointer.period)
    for name, number in zip(("max_iter", "log_period", "checkpointer.period"), numbers, strict=True):
        if number < 1:
            raise ValueError(f"train.{name} must be at least 1 iteration, got {number}")
    if train.eval_period < 0:
        raise ValueError(f"train.eval_period must be 0 (none before the end) or more, got {train.eval_period}")
    if train.get("save_period", 0) < 0:
        raise ValueError(f"train.save_period must be 0 (never) or more, got {train.save_period}")


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
