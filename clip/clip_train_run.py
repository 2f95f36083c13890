"""One run of train_clip.py: parse with open_clip_train's parser, check what would fail in hours, call its `main`."""

import argparse
import atexit
import contextlib
import logging
import math
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from clip_train_options import DEFAULT_TOP_K, DRAWN, HOST_DATASET_TYPES
from clip_train_seams import check_record, newest_checkpoint, training_seams
from open_clip_train import data as host_data
from open_clip_train import main as host
from open_clip_train.distributed import is_using_distributed, world_info_from_env
from open_clip_train.params import parse_args

from last_vit.clip_checkpoints import (
    Activation,
    ClipCheckpoint,
    check_activation,
    check_towers,
    config_uses_quick_gelu,
    read_clip_checkpoint,
)
from last_vit.clip_models import resolve_architecture
from last_vit.command_line import cores_at_hand
from last_vit.data.imagenet_layout import sort_classes
from last_vit.dense import attach_pool
from last_vit.pooling import resolve_top_k
from last_vit.stopping import hold_folder, stopping_at_step_borders

_CONFIGS = Path(__file__).resolve().parent / "model_configs"
_HOSTS = {"open_clip", "open_clip_train"}


def run(options: argparse.Namespace, host_flags: Sequence[str]) -> None:
    """Train, or print the plan with --dry-run."""
    if options.help_open_clip:
        parse_args(["--help"])
    logging.root.addHandler(logging.NullHandler())  # without one, logging.info() adds its own, which open_clip keeps
    args = parse_run(options, host_flags)
    rank, world_size = (0, 1) if not (args.horovod or is_using_distributed()) else world_info_from_env()[1:]
    check_flags(args)
    pretrained = read_pretrained(args.model, args.pretrained, args.force_quick_gelu)
    if args.distill_model is not None:
        read_pretrained(args.distill_model, args.distill_pretrained or "", False)
    model = build_without_memory(args, pretrained)
    image_size = model.visual.image_size if isinstance(model.visual.image_size, int) else max(model.visual.image_size)
    try:
        with training_seams(args, image_size, pretrained):
            plan = plan_data(args, image_size, world_size)
            if options.dry_run:
                if os.environ.get("RANK", "0") == "0":  # one process prints, of all that torchrun started
                    print(describe_plan(args, model, world_size, *plan))
                return
            if rank == 0:
                check_folder(args)
            is_training = plan != (0, 0)
            atexit.register(logging.disable)  # open_clip sets all loggers to INFO; torch's print statistics at exit
            with stopping_at_step_borders() if is_training else contextlib.nullcontext():
                status = host.main([])
    except (AssertionError, RuntimeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if _HOSTS.isdisjoint(Path(place.filename).parts):
            raise  # torch's own: the traceback is needed
        raise ValueError(f"open_clip stopped: {str(error) or place.line}") from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if status:
        raise ValueError("open_clip_train stopped before training; its last line says why")


def parse_run(options: argparse.Namespace, host_flags: Sequence[str]) -> argparse.Namespace:
    """open_clip_train's arguments, with ours among them."""
    expanded = re.search(r"^(--(?:train|val)-data)(?:\n.*\n(?!-)|=.*\n\1=)", "\n".join(host_flags), re.MULTILINE)
    if expanded:
        raise ValueError(
            f"{expanded[1]} got several shards, for the shell expanded the pattern: quote it, as in "
            f"{expanded[1]} 'shards-{{00000..00003}}.tar'"
        )
    if options.model is None:
        raise ValueError("--model is needed: a ViT or EVA tower, such as ViT-B-16-quickgelu, EVA02-B-16 or clip_mini_8")
    # by name: open_clip chooses beta2 and eps by it, and a path could hold "vit"
    words = ["--workers", str(cores_at_hand(most=4)), *host_flags, "--model", find_architecture(options.model)]
    if options.dataset_type in HOST_DATASET_TYPES:
        words += ["--dataset-type", options.dataset_type]
    args = parse_args(words)
    args.dataset_type = options.dataset_type or args.dataset_type
    if args.dataset_type == DRAWN:
        args.train_data = args.train_data or DRAWN  # open_clip trains where this is set
    for name in ("pooling", "top_k", "variant", "class_names", "caption_template"):
        setattr(args, name, getattr(options, name))
    if args.pooling == "last" and args.top_k is None:
        args.top_k = DEFAULT_TOP_K
    return args


def find_architecture(name: str) -> str:
    """The architecture that --model names (a name in model_configs/ too), registered with open_clip."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    own = _CONFIGS / f"{name}.json"
    if not name.endswith(".json"):
        name = str(own) if own.is_file() else name.replace("/", "-")
    return resolve_architecture(name)


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that exclude each other or LaSt, and an ImageNet that open_clip would score wrongly."""
    if args.torchscript or args.trace:
        flag = "--torchscript" if args.torchscript else "--trace"
        raise ValueError(f"{flag} cannot hold LaSt, whose FFT and choice of patches are Python; use --torchcompile")
    if args.pooling != "last" and (args.top_k is not None or args.variant is not None):
        raise ValueError(f"--top-k and --variant belong to --pooling last, got --pooling {args.pooling}")
    if args.dataset_type != "class-folder" and (args.class_names or args.caption_template):
        raise ValueError(
            f"--class-names and --caption-template belong to --dataset-type class-folder, got {args.dataset_type}"
        )
    if args.resume == "latest" and args.name is None:
        raise ValueError("--resume latest looks in the folder of a run, so it needs that run's --name")
    if args.imagenet_val is not None:
        folders = sorted(entry.name for entry in Path(args.imagenet_val).iterdir() if entry.is_dir())
        if len(folders) != 1000 or folders != sort_classes(folders):
            raise ValueError(
                f"--imagenet-val {args.imagenet_val} holds {len(folders)} class folders, and open_clip's evaluation "
                f"knows ImageNet's 1000 only, in their order as text: run clip/eval_zero_shot_cls.py on the checkpoints"
            )


def read_pretrained(arch: str, pretrained: str, force_quick_gelu: bool) -> ClipCheckpoint | None:
    """The file that --pretrained names, None for a tag; ValueError for weights of another activation.

    open_clip 3.3 only warns where a tag's weights need QuickGELU (OpenAI's, MetaCLIP's) and the architecture has GELU.
    """
    if not pretrained or ":" in arch:
        return None
    tag, file = open_clip.get_pretrained_cfg(arch, pretrained), None
    if tag:
        known = Activation(bool(tag.get("quick_gelu", False)), "open_clip's table of weights")
    elif Path(pretrained).is_file():
        file = read_clip_checkpoint(pretrained)
        known = file.activation
    else:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise ValueError(
            f"--pretrained {pretrained!r} is neither a file nor weights that open_clip has for {arch} "
            f"({', '.join(tags) or 'it has none'})"
        )
    try:
        check_activation(arch, force_quick_gelu or config_uses_quick_gelu(arch), Path(pretrained), known)
    except ValueError as error:
        raise ValueError(f"{error}; leave out --force-quick-gelu" if force_quick_gelu else str(error)) from error
    return file


def build_without_memory(args: argparse.Namespace, pretrained: ClipCheckpoint | None) -> torch.nn.Module:
    """The run's model on the meta device, with its pool; ValueError for what does not fit it."""
    size = args.force_image_size
    logging.disable()  # open_clip would speak of random weights
    try:
        model = open_clip.create_model(
            args.model,
            device="meta",
            load_weights=False,
            force_image_size=size[0] if size is not None and len(size) == 1 else size,
            force_patch_dropout=args.force_patch_dropout,
            force_context_length=args.force_context_length,
            force_custom_text=args.force_custom_text,
        )
    finally:
        logging.disable(logging.NOTSET)
    try:
        attach_pool(model, args.pooling, args.top_k, variant=args.variant or "release")
    except ValueError as error:
        raise ValueError(f"--model {args.model} with --pooling {args.pooling}: {error}") from error
    if args.lock_text and not args.lock_text_freeze_layer_norm and isinstance(model, open_clip.CLIP):
        raise ValueError(f"open_clip locks {args.model}'s text tower with its norms: add --lock-text-freeze-layer-norm")
    if pretrained is not None:
        check_towers(model, args.model, pretrained)
    if args.pooling == "last" and (num_patches := _num_patches(model)):
        drop = getattr(getattr(model.visual, "patch_dropout", None), "prob", 0.0)
        resolve_top_k(args.top_k, max(1, int(num_patches * (1 - drop))))
    return model


def plan_data(args: argparse.Namespace, image_size: int, world_size: int) -> tuple[int, int]:
    """Samples of an epoch, and its batches per process, as open_clip makes them; (0, 0) for a mere evaluation."""
    if args.dataset_type in ("synthetic", DRAWN) and not args.train_num_samples:
        raise ValueError(f"--dataset-type {args.dataset_type} needs --train-num-samples")
    as_one = {"batch_size": args.batch_size * world_size, "rank": 0, "world_size": 1, "distributed": False}
    transform = open_clip.image_transform(image_size, is_train=True)
    data = host_data.get_data(argparse.Namespace(**{**vars(args), **as_one}), (transform, transform))
    if not data:
        raise ValueError("no data: give --train-data (or --dataset-type synthetic-captions), or something to evaluate")
    if "train" not in data:
        return 0, 0
    loader = data["train"].dataloader
    if loader.num_batches < args.accum_freq:
        raise ValueError(
            f"{loader.num_samples} training samples are less than one step of {args.batch_size} x {world_size} "
            f"processes x {args.accum_freq} (--accum-freq); lower --batch-size"
        )
    return loader.num_samples, loader.num_batches


def describe_plan(
    args: argparse.Namespace, model: torch.nn.Module, world_size: int, num_samples: int, num_batches: int
) -> str:
    """The run in a few lines, for --dry-run."""
    pooling, num_patches = args.pooling, _num_patches(model)
    if args.pooling == "last":
        kept = resolve_top_k(args.top_k, num_patches) if num_patches else args.top_k
        pooling += f", top_k {args.top_k} = {kept} of {num_patches} patches, {args.variant or 'release'}"
    image, whole = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.visual, model))
    step = args.batch_size * world_size * args.accum_freq
    steps = num_batches // args.accum_freq
    total = steps * args.epochs
    return (
        f"model     {args.model}, {args.pretrained or 'random weights'}; {image:.1f}M of {whole:.1f}M parameters in "
        f"the image tower; {model.visual.image_size} pixels\n"
        f"pooling   {pooling}\n"
        f"data      {args.dataset_type}, {num_samples:,} samples per epoch\n"
        f"step      {args.batch_size} x {world_size} processes x {args.accum_freq} (accum-freq) = {step:,} samples\n"
        f"run       {steps:,} steps x {args.epochs} epochs = {total:,} steps, {total * step:,} samples\n"
        f"optimizer {args.opt}, lr {args.lr}, wd {args.wd}, betas {args.beta1} {args.beta2}, eps {args.eps}, "
        f"{args.lr_scheduler}, warm-up {args.warmup:,} steps, clip-norm {args.grad_clip_norm}, {args.precision}"
    )


def check_folder(args: argparse.Namespace) -> None:
    """Refuse to begin a run where another one is, and to go on with one of another kind."""
    folder = Path(args.logs) / str(args.name)
    if args.name is not None and args.logs.lower() != "none":
        hold_folder(folder)
    if args.resume is None:
        if (folder / ("out-0" if args.log_local else "out.log")).exists():
            raise ValueError(f"{folder} holds a run already; give another --name, or go on with it by --resume latest")
        return
    checkpoint = folder / "checkpoints" / "epoch_latest.pt" if args.resume == "latest" else Path(args.resume)
    newest = newest_checkpoint(checkpoint.parent)
    if args.resume == "latest" and args.save_most_recent and newest is not None and not checkpoint.is_file():
        raise ValueError(
            f"with --save-most-recent, --resume latest goes on from {checkpoint.name}, and {checkpoint.parent} has "
            f"{newest.name} only: leave out --save-most-recent, or copy that file to {checkpoint.name}"
        )
    if args.resume != "latest" and "://" not in args.resume and not checkpoint.is_file():
        raise FileNotFoundError(f"--resume {args.resume!r}: no such file")
    check_record(checkpoint, args)


def _num_patches(model: torch.nn.Module) -> int | None:
    """N of the image tower; None for a ConvNet."""
    if hasattr(model.visual, "grid_size"):
        return math.prod(model.visual.grid_size)
    return getattr(getattr(model.visual.trunk, "patch_embed", None), "num_patches", None)
