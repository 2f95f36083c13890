"""The data of a run, looked at before it starts, and its arithmetic: samples, steps, epochs."""

import argparse
import math
from pathlib import Path

import pandas
from caption_sources import open_source
from clip_train_checks import ModelFacts
from clip_train_options import DRAWN, OUR_DATASET_TYPES
from open_clip_train.data import expand_urls, get_dataset_size

from last_vit.pooling import resolve_top_k


def check_data(args: argparse.Namespace, facts: ModelFacts, world_size: int) -> tuple[int, int]:
    """Find the training data, and say how much of it there is.

    Args:
        args: Of the run.
        facts: Of its model.
        world_size: Number of processes.

    Returns:
        Samples per epoch, and batches per epoch and process; (0, 0) for a run that only evaluates.

    Raises:
        FileNotFoundError: No such data.
        ValueError: Flags that are missing for it, too little of it, or broken data.
    """
    if not (args.train_data or args.dataset_type == "synthetic"):
        if args.val_data or args.imagenet_val or args.imagenet_v2:
            return 0, 0
        raise ValueError("no data: give --train-data (or --dataset-type synthetic-captions), or something to evaluate")
    if args.dataset_type in ("synthetic", DRAWN) and not args.train_num_samples:
        raise ValueError(f"--dataset-type {args.dataset_type} needs --train-num-samples")
    kind = args.dataset_type
    if kind == "auto":
        kind = {".csv": "csv", ".tsv": "csv", ".tar": "webdataset"}.get(Path(args.train_data).suffix)
        if kind is None:
            raise ValueError(f"--train-data {args.train_data!r} ends in none of .tar, .csv, .tsv; say --dataset-type")
    if args.val_data and args.dataset_type in OUR_DATASET_TYPES:
        open_source(args, False, facts.image_hw)
    if kind == "webdataset":
        return _plan_shards(args, world_size)
    if kind == "csv":
        num_samples = len(pandas.read_csv(args.train_data, sep=args.csv_separator))
    elif kind == "synthetic":
        num_samples = args.train_num_samples
    else:
        num_samples = len(open_source(args, True, facts.image_hw))
    num_batches = num_samples // (args.batch_size * world_size)
    if num_batches < args.accum_freq:
        raise ValueError(
            f"{num_samples} training samples are less than one step of {args.batch_size} x {world_size} processes x "
            f"{args.accum_freq} (--accum-freq); lower --batch-size"
        )
    return num_samples, num_batches


def describe_plan(
    args: argparse.Namespace, facts: ModelFacts, world_size: int, num_samples: int, num_batches: int
) -> str:
    """The run in a few lines, for --dry-run."""
    pooling = args.pooling
    if args.pooling == "last":
        kept = resolve_top_k(args.top_k, facts.num_patches) if facts.num_patches else args.top_k
        pooling += f", top_k {args.top_k} = {kept} of {facts.num_patches} patches, {args.variant or 'release'}"
    per_step = args.batch_size * world_size * args.accum_freq
    steps = num_batches // args.accum_freq
    seen = steps * args.epochs * per_step
    height, width = facts.image_hw
    lines = [
        f"model     {args.model}, {args.pretrained or 'random weights'}; {facts.num_image_parameters / 1e6:.1f}M of "
        f"{facts.num_parameters / 1e6:.1f}M parameters in the image tower; {height} x {width} pixels",
        f"pooling   {pooling}",
        f"data      {args.dataset_type}, {num_samples:,} samples per epoch",
        f"step      {args.batch_size} x {world_size} processes x {args.accum_freq} (accum-freq) = {per_step:,} samples",
        f"run       {steps:,} steps x {args.epochs} epochs = {steps * args.epochs:,} steps, {seen:,} samples",
        f"optimizer {args.opt}, lr {args.lr}, wd {args.wd}, betas {args.beta1} {args.beta2}, eps {args.eps}, "
        f"{args.lr_scheduler}, warm-up {args.warmup:,} steps, clip-norm {args.grad_clip_norm}, {args.precision}",
    ]
    return "\n".join(lines)


def _plan_shards(args: argparse.Namespace, world_size: int) -> tuple[int, int]:
    """As open_clip plans an epoch of shards: full batches, as many for each loading process."""
    shards, _ = expand_urls(args.train_data, args.train_data_upsampling_factors)
    local = [shard for shard in shards if ":" not in shard]
    if local and not any(Path(shard).is_file() for shard in local):
        raise FileNotFoundError(f"none of the {len(local)} shards of --train-data exists, such as {local[0]}")
    num_samples = args.train_num_samples or get_dataset_size(args.train_data)[0]
    if not num_samples:
        raise ValueError(
            "shards do not say how many samples they hold: give --train-num-samples, the samples of an epoch"
        )
    if not args.dataset_resampled and len(shards) < args.workers * world_size:
        raise ValueError(
            f"{len(shards)} shards are less than --workers {args.workers} x {world_size} processes, each of which "
            f"reads shards of its own; lower --workers, or draw shards with --dataset-resampled"
        )
    num_workers = max(1, args.workers)
    num_batches = math.ceil(num_samples / (args.batch_size * world_size))
    return num_samples, math.ceil(num_batches / num_workers) * num_workers
