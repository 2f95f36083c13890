"""The command line of trainers that are described by a LazyConfig: detectron2's flags, launcher, and one-line errors.

Processes are started by --num-gpus / --num-machines (detectron2's launcher; CPU processes where there is no GPU) or by
torchrun. Imports detectron2 and torch only when a run begins, so --help needs neither.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NAME = "lazy_train.py"


def lazy_parser(description: str, example: str, rows_of: str) -> argparse.ArgumentParser:
    """Detectron2's flags.

    Args:
        description: The script's docstring.
        example: An override, for the help.
        rows_of: README's table that --row adds to.
    """
    parser = argparse.ArgumentParser(
        prog=NAME, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig .py file")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in train.output_dir")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint and stop")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine, one per GPU (default 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    parser.add_argument("--dist-url", default="auto", help="tcp://host:port of the first machine; needed for several")
    parser.add_argument("--row", help=f"show the result in README's {rows_of} table under this label")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="key=value", help=f"config overrides, such as {example}"
    )
    return parser


def run_lazily(args: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> int:
    """Launch `run` in every process; a user's error becomes one message, also from a spawned process.

    Args:
        args: Of `lazy_parser`.
        run: Of the script itself, so that a spawned process finds it.

    Returns:
        Exit status: 0, or 2 for an error that the user can mend.
    """
    try:
        _launch(args, run)
    except ImportError as error:
        print(f"{NAME}: error: {error}; run make setup, or pip install -r requirements.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        from last_vit.runtime import error_text

        print(f"{NAME}: error: {error_text(error)}", file=sys.stderr)
        return 2
    return 0


def read_config(file: str, overrides: Sequence[str], recipes: str) -> Any:
    """A config with overrides.

    Args:
        file: The .py file.
        overrides: As in `apply_overrides`.
        recipes: Where there are some, for the message.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As in `apply_overrides`.
    """
    from detectron2.config import LazyConfig

    from last_vit.lazy.overrides import apply_overrides

    if not Path(file).is_file():
        raise FileNotFoundError(f"no config file {file}; the recipes are {recipes}")
    return apply_overrides(LazyConfig.load(file), overrides)


def check_run(args: argparse.Namespace, cfg: Any) -> None:
    """Refuse to overwrite a run, or to evaluate nothing.

    Raises:
        FileExistsError: `train.output_dir` has checkpoints and neither --resume nor --eval-only was given.
        ValueError: --eval-only without `train.init_checkpoint`.
    """
    output_dir = Path(cfg.train.output_dir)
    if not (args.resume or args.eval_only) and (output_dir / "last_checkpoint").exists():
        raise FileExistsError(
            f"{output_dir} holds the checkpoints of an earlier run: continue it with --resume, or choose another "
            f"train.output_dir"
        )
    if args.eval_only and not cfg.train.init_checkpoint:
        raise ValueError("--eval-only needs train.init_checkpoint=/path/to/checkpoint.pth")


def _launch(args: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> None:
    import torch
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    from last_vit.runtime import process_group

    if torch.distributed.is_torchelastic_launched():
        with process_group():
            run(args)
        return
    num_gpus = torch.cuda.device_count()
    if args.num_gpus < 1 or (num_gpus and args.num_gpus > num_gpus):
        raise ValueError(f"--num-gpus must be in [1, {num_gpus or 'the number of cores'}], got {args.num_gpus}")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://<first machine>:<port>")
    if args.num_gpus * args.num_machines == 1:
        run(args)
        return
    try:
        launch(_run_spawned, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, run))
    except ProcessExitedException as error:
        raise SystemExit(error.exit_code) from None  # the process has said why


def _run_spawned(args: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> None:
    """`run` in a process of detectron2's launcher, which would wrap a user's error into two stack traces."""
    from last_vit.runtime import error_text, rank

    try:
        run(args)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"{NAME}: error: {error_text(error)} (process {rank()})", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
