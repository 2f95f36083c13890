"""One run of train_clip.py: parse with open_clip_train's parser, check, and call its `main`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from clip_train_checks import check_flags, check_imagenet, check_model, read_pretrained, world_of
from clip_train_options import DEFAULT_TOP_K, DRAWN, HOST_DATASET_TYPES
from clip_train_overlay import logging_restored
from clip_train_plan import check_data, describe_plan
from clip_train_record import check_record
from clip_train_seams import training_seams
from open_clip_train import main as host
from open_clip_train.params import parse_args

from last_vit.clip_models import resolve_architecture

_CONFIGS = Path(__file__).resolve().parent / "model_configs"


def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train, or print the plan with --dry-run.

    Args:
        options: Our flags.
        rest: open_clip_train's.

    Raises:
        ValueError, FileNotFoundError: Whatever the user can mend.
        FloatingPointError: The loss, or a weight, is NaN or infinite.
    """
    args = parse_run(options, rest)
    rank, world_size = world_of(args)
    check_flags(args)
    pretrained = read_pretrained(args.model, args.pretrained, args.force_quick_gelu)
    if args.distill_model is not None:
        read_pretrained(args.distill_model, args.distill_pretrained or "", False)
    facts = check_model(args, pretrained)
    if args.imagenet_val is not None:
        check_imagenet(args.imagenet_val)
    plan = check_data(args, facts, world_size)
    if rank == 0:
        _check_folder(args)
    if options.dry_run:
        if rank == 0:
            print(describe_plan(args, facts, world_size, *plan))
        return
    try:
        with logging_restored(), training_seams(args, facts.image_hw, pretrained):
            status = host.main([])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if status:
        raise ValueError("open_clip_train stopped before training; its last line says why")


def parse_run(options: argparse.Namespace, rest: Sequence[str]) -> argparse.Namespace:
    """open_clip_train's arguments, with ours among them.

    Raises:
        ValueError, FileNotFoundError: No model, or one that is not known.
        SystemExit: As argparse, for flags that nobody knows.
    """
    if options.model is None:
        raise ValueError("--model is needed: a ViT or EVA tower, such as ViT-B-16-quickgelu, EVA02-B-16 or clip_mini_8")
    arch = find_architecture(options.model)
    # by name: open_clip chooses beta2 and eps by it, and a path could hold "vit"
    words = [*rest, "--model", arch]
    if options.dataset_type in HOST_DATASET_TYPES:
        words += ["--dataset-type", options.dataset_type]
    args = parse_args(words)
    if options.dataset_type is not None:
        args.dataset_type = options.dataset_type
    if args.dataset_type == DRAWN:
        args.train_data = args.train_data or DRAWN  # open_clip trains where this is set
    args.pooling, args.variant = options.pooling, options.variant
    args.top_k = DEFAULT_TOP_K if options.pooling == "last" and options.top_k is None else options.top_k
    args.class_names, args.caption_template = options.class_names, options.caption_template
    return args


def find_architecture(name: str) -> str:
    """The architecture that --model names, registered with open_clip.

    Args:
        name: An open_clip name, "hf-hub:" or "local-dir:" and where, the path of a JSON, or a name in model_configs/.

    Raises:
        ValueError, FileNotFoundError: As `resolve_architecture`.
    """
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    own = _CONFIGS / f"{name}.json"
    if name.endswith(".json"):
        return resolve_architecture(name)
    return resolve_architecture(str(own) if own.is_file() else name.replace("/", "-"))


def print_host_help() -> None:
    """Print open_clip_train's help, and exit."""
    parse_args(["--help"])


def _check_folder(args: argparse.Namespace) -> None:
    """Refuse to begin a run where another one is, and to go on with one of another kind."""
    run = None if args.name is None else Path(args.logs) / args.name
    if args.resume is not None and args.resume != "latest":
        if not Path(args.resume).is_file() and "://" not in args.resume:
            raise FileNotFoundError(f"--resume {args.resume!r}: no such file")
        check_record(Path(args.resume), args)
    if run is None:
        return
    checkpoints = run / "checkpoints"
    found = sorted(path.name for path in checkpoints.glob("epoch_*.pt"))
    if args.resume != "latest":
        if (run / ("out-0" if args.log_local else "out.log")).exists():
            raise ValueError(f"{run} holds a run already; give another --name, or go on with it by --resume latest")
    elif found:
        check_record(checkpoints / found[0], args)
        if args.save_most_recent and "epoch_latest.pt" not in found:
            raise ValueError(
                f"with --save-most-recent open_clip goes on from epoch_latest.pt alone, and {checkpoints} holds "
                f"{', '.join(found)}: it would begin anew over them; leave out --save-most-recent"
            )
