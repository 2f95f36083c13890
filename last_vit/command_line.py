"""What every command line shares: a parser from a docstring, and errors that end in one line.

Imports nothing heavy, and `import last_vit` loads torch only when a name is taken from it, so --help needs no torch.
"""

import argparse
from collections.abc import Callable, Sequence

MODEL_HELP = (
    "[NAME=]SPEC[@CHECKPOINT][,pool=KIND][,top_k=K][,variant=release|paper]; SPEC is torchvision:<name>, timm:<name>, "
    "dino:<arch>/<patch>, open_clip:<arch>[/<file>] or <config>.py, CHECKPOINT a local file or `random`"
)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """An empty parser whose help begins with a script's docstring."""
    return argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_command_line(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> None:
    """Parse and run; exits with status 2 and one line on any error that the user can mend.

    Args:
        parser: Its `prog` begins the line.
        run: Gets the parsed arguments.
        argv: Arguments without the program; None are the process's own.
    """
    args = parser.parse_args(argv)
    try:
        run(args)
    except ImportError as error:  # perhaps torch itself, without which runtime.py is not to be had
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except (ValueError, OSError, FloatingPointError) as error:
        from last_vit.runtime import error_text

        parser.exit(2, f"{parser.prog}: error: {error_text(error)}\n")


def positive(text: str) -> int:
    """A flag's value that counts something: a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: A smaller one.
        ValueError: No whole number.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def patch_count(text: str) -> int | float:
    """LaSt's K on a command line: "7" is a number of patches, "0.25" a share of them.

    Raises:
        argparse.ArgumentTypeError: Neither.
    """
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a number of patches or a share such as 0.25, got {text!r}"
        ) from error
