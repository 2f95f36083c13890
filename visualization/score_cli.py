"""What both probes of patch scores (paper figure 2) share on the command line: the token, errors, the printed table."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from last_vit.model_argument import ModelArgument
    from last_vit.trained_model import TrainedModel


def add_token_flag(parser: argparse.ArgumentParser) -> None:
    """--global-token, as `last_vit.patch_hit.choose_global_token` takes it."""
    parser.add_argument(
        "--global-token",
        choices=("trained", "cls", "last", "mean"),
        default="trained",
        help="the token that patches are compared with; default trained: what the model is pooled with",
    )


def token_words(args: argparse.Namespace, trained: "TrainedModel") -> str:
    """The token as records name it: "trained token", or "last K=1 release token" for a model pooled otherwise."""
    if args.global_token != "last" or trained.pooling["pool"] == "last":  # noqa: S105 (no password)
        return f"{args.global_token} token"
    selection = trained.selection()
    return f"last K={selection.top_k} {selection.variant} token"


@contextmanager
def naming(argument: "ModelArgument") -> Iterator[None]:
    """Put the model's name before what a ValueError of the block says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model {argument.name!r}: {error}") from error


def print_table(cells: Sequence[Sequence[str]]) -> None:
    """Print lines of equally many cells in columns, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))
