"""What every command line shares: a parser from a docstring, the common flags, and errors that end in one line.

Imports nothing heavy, and `import last_vit` loads torch only when a name is taken from it, so --help needs no torch.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from last_vit.names import GLOBAL_TOKENS
from last_vit.stopping import Stopped, ending_at_sigterm

Work = Callable[[argparse.Namespace], None]
# of the console script
COMMANDS = {
    "explore": "visualization/explore.py",
    "discover": "dino/discover.py",
    "segment": "clip/segment.py",
    "report": "visualization/make_report.py",
    "pib": "visualization/evaluate_patch_hit.py",
    "bench": "tools/bench/run_all.py",
}
MODEL_FORMS = (
    "torchvision:<name>, timm:<name>, open_clip:<arch or .json>[/<file>], dino:<arch>/<patch>, hf:<folder or name>, "
    "last_vit:<released name> or <config>.py"
)
MODEL_HELP = (
    f"[NAME=]SPEC[@CHECKPOINT][,pool=KIND][,top_k=K][,variant=release|paper]; SPEC is {MODEL_FORMS}, CHECKPOINT a "
    "local file, `random` or, for timm, `pretrained`; once per model"
)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """An empty parser whose help begins with a script's docstring."""
    return argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_command_line(parser: argparse.ArgumentParser, run: Work, argv: Sequence[str] | None) -> None:
    """Parse and run; exits with status 2 and one line on any error that the user can mend.

    `argv` are arguments without the program; None are the process's own.
    """
    args = parser.parse_args(argv)
    with ending_in_one_line(parser.prog):
        run(args)


@contextmanager
def ending_in_one_line(prog: str, who: str = "") -> Iterator[None]:
    """Exit with a line in place of a stack trace: 2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM.

    The line begins with `prog` and ends with `who`, such as the number of a process.
    """
    with ending_at_sigterm():
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            status, line = _ending(error)
            if not status:
                raise
            if line:
                print(f"{prog}: {line}{who}", file=sys.stderr, flush=True)
            raise SystemExit(status) from None


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit status and line for an exception; status 0 for one that needs its stack trace."""
    if isinstance(error, Stopped):
        return error.status, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C"
    if isinstance(error, ImportError):  # perhaps torch itself, without which runtime.py is not to be had
        return 2, f"error: {error}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # killed, says torch
        return 2, f"error: {error} Is there memory enough? Fewer loading processes need less"
    if not isinstance(error, (ValueError, OSError, FloatingPointError)):
        return 0, ""
    from last_vit.runtime import error_text

    return 2, f"error: {error_text(error)}"


def main() -> None:
    """The console script `last-vit COMMAND ...`: one of `COMMANDS`, as python runs it, no clone needed."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        lines = [f"  {each:<10}python {script} ..." for each, script in COMMANDS.items()]
        print("usage: last-vit COMMAND ...    (last-vit COMMAND --help tells more)\n", *lines, sep="\n")
        sys.exit(0 if name in ("-h", "--help") else _refuse(f"last-vit: error: there is no command {name!r}"))
    package = Path(__file__).resolve().parent
    script = next(path for home in (package / "_scripts", package.parent) if (path := home / COMMANDS[name]).is_file())
    os.execv(sys.executable, [sys.executable, str(script), *sys.argv[2:]])  # noqa: S606 (our own script)


def _refuse(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


class Script:
    """A script's `main`, see `command`."""

    def __init__(self, add_flags: Callable[[argparse.ArgumentParser], None], work: Work | str) -> None:
        self._add_flags, self._work = add_flags, work

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Parse, and do the work as `run_command_line` does."""
        run_command_line(self.build_parser(), self._run, argv)

    def build_parser(self) -> argparse.ArgumentParser:
        """Called as the script's file is, with its docstring as help."""
        script = self._add_flags.__globals__
        parser = command_parser(Path(script["__file__"]).name, script["__doc__"])
        self._add_flags(parser)
        return parser

    def _run(self, args: argparse.Namespace) -> None:
        if isinstance(self._work, str):
            module, _, function = self._work.partition(":")
            getattr(import_module(module), function)(args)
        else:
            self._work(args)


def command(work: Work | str) -> Callable[[Callable[[argparse.ArgumentParser], None]], Script]:
    """Turns the function that adds a script's flags to a parser into the script's `main(argv=None)`.

    `work` gets the parsed arguments. As "module:function" of a module beside the script it is imported when there is
    work, so that --help waits for no library.
    """
    return lambda add_flags: Script(add_flags, work)


def add_lazy_train_flags(parser: argparse.ArgumentParser, example: str, rows_of: str) -> None:
    """Those of a lazy_train.py; `example` is an override for the help, `rows_of` the table that --row adds to."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="LazyConfig .py file")
    add("--resume", action="store_true", help="continue from the last checkpoint in train.output_dir")
    add("--eval-only", action="store_true", help="evaluate train.init_checkpoint and stop")
    add("--num-gpus", type=int, default=1, help="processes per machine, one per GPU (default 1)")
    add("--num-machines", type=int, default=1, help="number of machines")
    add("--machine-rank", type=int, default=0, help="rank of this machine")
    add("--dist-url", default="auto", help="tcp://host:port of the first machine; needed for several")
    add("--row", help=f"show the result in the {rows_of} table under this label")
    add("opts", nargs=argparse.REMAINDER, metavar="key=value", help=f"config overrides, such as {example}")


def add_model_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model, once per model, and the input size that all of them get."""
    add = parser.add_argument
    add("--model", action="append", required=required, metavar="MODEL", help=MODEL_HELP)
    add("--image-size", type=positive, help="crop in pixels; default: each model's")
    add("--resize", type=positive, help="shorter side before the crop in pixels; default: each model's")


def add_token_flag(parser: argparse.ArgumentParser) -> None:
    """--global-token, as `last_vit.dense.choose_global_token` takes it."""
    parser.add_argument(
        "--global-token",
        choices=GLOBAL_TOKENS,
        default="trained",
        help="the token that patches are compared with; default trained: what the model is pooled with. The released "
        "Point-in-Box script used cls",
    )


def cores_at_hand(most: int = 8) -> int:
    """Cores that each process of this machine can have, `most` at most: what a number of loading processes is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))  # torchrun's variable


def add_loading_flags(parser: argparse.ArgumentParser, batch_size: int = 32) -> None:
    """Batches, loading processes and the device."""
    add = parser.add_argument
    add("--batch-size", type=positive, default=batch_size, help=f"images per process and step; default {batch_size}")
    add_workers_flag(parser, "--num-workers")
    add_device_flag(parser)


def add_workers_flag(parser: "argparse.ArgumentParser | argparse._ArgumentGroup", flag: str) -> None:
    """How many processes load images; the numbers do not depend on it."""
    most = cores_at_hand()
    parser.add_argument(
        flag, type=non_negative, default=most, help=f"loading processes; default: the cores at hand, at most 8: {most}"
    )


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")


def add_running_flags(parser: "argparse.ArgumentParser | argparse._ArgumentGroup", batch_size: int = 32) -> None:
    """What every measurement has: batches, loading processes, the device, and its record."""
    add_loading_flags(parser, batch_size)
    add_record_flags(parser)


def add_photo_flag(parser: argparse.ArgumentParser, name: str = "--image") -> None:
    """One photo or several, as --image, which may be repeated, or in front of the flags."""
    how = {"action": "extend", "required": True} if name.startswith("-") else {}
    parser.add_argument(name, type=Path, nargs="+", metavar="PHOTO", help="of any size and format", **how)


def add_record_flags(parser: argparse.ArgumentParser) -> None:
    """Whether a run enters results/, and what its files are called; read by `last_vit.evaluation.write_record`."""
    add = parser.add_argument
    add("--output", metavar="NAME", help="beginning of the record's file name; default: what is measured")
    add(
        "--row",
        nargs="?",
        const="",
        metavar="LABEL",
        help="keep the record in results/ and show it in docs/results.md under this label (without one: the model's "
        "name); runs (seeds) may share it. Default: the record goes to output/ and no table shows it",
    )
    add("--table", action="store_const", const="", dest="row", help="the same as --row without a label")


def positive(text: str) -> int:
    """A flag's value that counts something: a whole number of at least 1."""
    return _at_least(1, text, "must be at least 1")


def non_negative(text: str) -> int:
    """A flag's value that may be zero, such as a seed."""
    return _at_least(0, text, "must not be negative")


def _at_least(minimum: int, text: str, wrong: str) -> int:
    value = int(text)  # argparse words the ValueError
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{wrong}, got {text}")
    return value


def patch_count(text: str) -> int | float:
    """LaSt's K on a command line: "7" is a number of patches, "0.25" a share of them."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a number of patches or a share such as 0.25, got {text!r}"
        ) from error
