"""What commands that compare patches with a global token share: the flag, its words, and a check before any work."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from last_vit.models import ModelArgument, TrainedModel


def add_token_flag(parser: argparse.ArgumentParser) -> None:
    """--global-token, as `last_vit.patch_hit.choose_global_token` takes it."""
    parser.add_argument(
        "--global-token",
        choices=("trained", "cls", "last", "mean"),
        default="trained",
        help="the token that patches are compared with; default trained: what the model is pooled with. The released "
        "Point-in-Box script used cls",
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


def check_model(argument: "ModelArgument", args: argparse.Namespace, device: "torch.device") -> None:
    """Load a model and run it on one black image.

    Args:
        argument: The model as it was asked for.
        args: Parsed.
        device: Where to compute.

    Raises:
        ValueError, FileNotFoundError: Whatever would stop the model later, such as `--global-token cls` without class
            token, or a K above the number of patches; the message names the model.
    """
    import torch

    from last_vit.dense import dense_forward
    from last_vit.patch_hit import choose_global_token

    trained = argument.load(args.image_size, args.resize)
    side = trained.preprocessing.crop
    with naming(argument), torch.inference_mode():
        output = dense_forward(trained.model.to(device), torch.zeros(1, 3, side, side, device=device))
        choose_global_token(output, args.global_token, trained.selection())
