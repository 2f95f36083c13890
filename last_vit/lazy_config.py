"""Runs that a detectron2 LazyConfig describes: strict overrides, processes, and what stands before the first step."""

import argparse
import difflib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_setup, launch
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.multiprocessing import ProcessExitedException

import last_vit
from last_vit.command_line import ending_in_one_line
from last_vit.runtime import is_main_process, process_group, rank
from last_vit.stopping import hold_folder, passing_signals_on

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
    try:
        with ending_in_one_line("lazy_train.py", f" (process {rank()})"):
            run(args)
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
        last_vit.use_fused_pool(True)
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
