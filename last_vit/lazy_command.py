"""The flags of trainers that are described by a LazyConfig, which are detectron2's; light, so that --help is quick."""

import argparse
from collections.abc import Callable, Sequence

from last_vit.command_line import command_parser, run_command_line


def run_lazy_train(
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
    description: str,
    example: str,
    rows_of: str,
    **spellings: str,
) -> None:
    """Parse a lazy_train.py's command line and run; a user's error is one line and exit status 2.

    Args:
        run: Gets the parsed arguments.
        argv: Arguments without the program; None are the process's own.
        description: The script's docstring.
        example: An override, for the help.
        rows_of: The table that --row adds to.
        spellings: Overrides by the parameter of the library that they set, see `own_spelling`.
    """
    parser = command_parser("lazy_train.py", description)
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
    parser.set_defaults(spellings=spellings)
    run_command_line(parser, run, argv)
