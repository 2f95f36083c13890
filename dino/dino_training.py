"""The training loop of main_dino.py: networks and data from the flags, epochs, log and checkpoints."""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from dino_backbone import attach_pooling, build_backbone, has_batch_norm
from dino_checkpoint import Progress, resume_run, save_run
from dino_data import MultiCropAugmentation, open_training_images
from dino_head import DinoHead, MultiCrop
from dino_loss import NUM_TEACHER_VIEWS, DinoLoss
from dino_optimizers import build_optimizer, cosine_schedule, parameter_groups, temperature_schedule
from dino_options import check_options, crop_sizes
from dino_step import DinoStep, Schedules
from torch import nn
from torch.utils.data import DataLoader

import last_vit
from last_vit.atomic_file import atomic_file
from last_vit.data.loaders import build_train_loader
from last_vit.late_scalars import StopVote
from last_vit.runtime import get_logger, is_main_process, process_group, seed_everything, world_size
from last_vit.stopping import hold_folder, stopping_at_step_borders
from last_vit.train_lib import check_same_start, stop_run
from last_vit.wandb_log import open_wandb

_LOG_PERIOD = 10  # iterations per log line, as in DINO
logger = get_logger("dino")


def train(args: argparse.Namespace) -> None:
    """Train what main_dino.py's flags describe, from the start or from `output_dir/checkpoint.pth`.

    FloatingPointError where the loss or a weight is not finite; the last checkpoint is good.
    """
    check_options(args)
    if args.fused_pool:
        last_vit.use_fused_pool(True)
    with process_group(dist_url=args.dist_url) as device, stopping_at_step_borders():
        get_logger("dino")  # now that the rank is known
        seed_everything(args.seed)
        torch.backends.cudnn.benchmark = True
        folder = Path(args.output_dir)
        if is_main_process():
            hold_folder(folder)
        loader, epoch_length = _open_data(args)
        step, pooling = build_step(args, epoch_length, device)
        step.checkpoint = folder / "checkpoint.pth"
        start = resume_run(folder, step, vars(args), pooling)
        if start.iteration and start.length != epoch_length:
            raise ValueError(
                f"{step.checkpoint} was stopped in an epoch of {start.length} iterations, this run's have "
                f"{epoch_length}: resume with the run's own data, processes and --batch_size_per_gpu"
            )
        begun = start.epoch * epoch_length + start.iteration
        check_same_start(begun, folder)
        if begun:
            logger.info(f"Resuming from {step.checkpoint} after {start.epoch} epochs and {start.iteration} iterations")
        loader.batch_sampler.start_iteration = begun
        batches, vote = iter(loader), StopVote(device)
        if is_main_process():
            _forget_epochs_from(folder / "log.txt", start.epoch)
        tracked = open_wandb(folder, vars(args)) if args.wandb and is_main_process() else None

        def stop_if_asked(done: Progress) -> None:
            if not vote():
                return
            step.check()
            if is_main_process():
                save_run(folder, step, done, vars(args), pooling)
            stop_run(f"after iteration {done.iteration} of epoch {done.epoch + 1}", step.checkpoint)

        for epoch in range(start.epoch, args.epochs):
            begin = start if epoch == start.epoch else Progress(epoch)
            stats = _train_epoch(step, batches, begin, args.epochs, epoch_length, device, stop_if_asked)
            if is_main_process():
                with open(folder / "log.txt", "a", encoding="utf-8") as file:
                    file.write(json.dumps({**stats, "epoch": epoch}) + "\n")
                if tracked is not None:
                    tracked.log({**stats, "epoch": epoch}, step=epoch)
                save_run(folder, step, Progress(epoch + 1), vars(args), pooling)
            if epoch + 1 < args.epochs:
                stop_if_asked(Progress(epoch + 1))


def build_step(args: argparse.Namespace, epoch_length: int, device: torch.device) -> tuple[DinoStep, dict[str, Any]]:
    """The step of the checked flags, for epochs of that many iterations, and the pooling as checkpoints record it."""
    student, pooling = _build_network(args, args.drop_path_rate)
    teacher, _ = _build_network(args, 0.0)
    teacher.load_state_dict(student.state_dict())
    networks = [student.to(device), teacher.to(device)]
    if world_size() > 1 and has_batch_norm(student):
        if device.type == "cuda":
            networks = [nn.SyncBatchNorm.convert_sync_batchnorm(network) for network in networks]
        else:
            logger.warning("Batch norm on CPUs: each process normalises by its own images")
    if args.compile:
        for network in networks:
            network.backbone.compile(dynamic=False)  # a graph per crop size
    lr = args.lr * args.batch_size_per_gpu * world_size() / 256
    schedules = Schedules(
        lr=cosine_schedule(lr, args.min_lr, args.epochs, epoch_length, args.warmup_epochs),
        weight_decay=cosine_schedule(args.weight_decay, args.weight_decay_end, args.epochs, epoch_length),
        teacher_momentum=cosine_schedule(args.momentum_teacher, 1.0, args.epochs, epoch_length),
        teacher_temp=temperature_schedule(
            args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_epochs, args.epochs
        ),
    )
    step = DinoStep(
        *networks,
        loss=DinoLoss(args.out_dim, NUM_TEACHER_VIEWS + args.local_crops_number).to(device),
        optimizer=build_optimizer(args.optimizer, parameter_groups(networks[0])),
        schedules=schedules,
        clip_grad=args.clip_grad,
        freeze_last_layer=args.freeze_last_layer,
        dtype=_precision(args, device),
        accumulation_steps=args.accumulation_steps,
        seed=args.seed,
    )
    num_parameters = sum(parameter.numel() for parameter in networks[0].backbone.parameters())
    logger.info(
        f"{args.arch}, {num_parameters / 1e6:.1f}M parameters, pooling {pooling}; {world_size()} processes x "
        f"{args.batch_size_per_gpu} images on {device}, {step.dtype}, {epoch_length} iterations per epoch"
    )
    return step, pooling


def _build_network(args: argparse.Namespace, drop_path_rate: float) -> tuple[MultiCrop, dict[str, Any]]:
    backbone, embed_dim = build_backbone(args.arch, args.patch_size, args.global_crop_size, drop_path_rate)
    pooling = attach_pooling(backbone, args.pooling, args.top_k, args.variant, crop_sizes(args))
    head = DinoHead(embed_dim, args.out_dim, args.use_bn_in_head, args.norm_last_layer)
    return MultiCrop(backbone, head), pooling


def _open_data(args: argparse.Namespace) -> tuple[DataLoader, int]:
    """Endless loader of multi-crop batches, and the iterations that make an epoch."""
    augmentation = MultiCropAugmentation(
        args.global_crops_scale,
        args.local_crops_scale,
        args.local_crops_number,
        args.global_crop_size,
        args.local_crop_size,
    )
    images = open_training_images(args.data_path, augmentation, args.skip_broken)
    epoch_length = len(images) // (args.batch_size_per_gpu * world_size())
    if epoch_length < 1:
        raise ValueError(
            f"{args.data_path} has {len(images)} images, less than one step takes ({world_size()} processes x "
            f"--batch_size_per_gpu {args.batch_size_per_gpu})"
        )
    return build_train_loader(images, args.batch_size_per_gpu, args.num_workers, args.seed), epoch_length


def _precision(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    if args.bf16:
        return torch.bfloat16
    if args.use_fp16 and device.type != "cuda":
        logger.info("--use_fp16 needs a GPU: training in float32 (--bf16 true works on a CPU)")
    return torch.float16 if args.use_fp16 and device.type == "cuda" else torch.float32


def _train_epoch(
    step: DinoStep,
    batches: Iterator[dict[str, Any]],
    begin: Progress,
    epochs: int,
    length: int,
    device: torch.device,
    stop_if_asked: Callable[[Progress], None],
) -> dict[str, float]:
    """The rest of an epoch; returns its means as DINO logs them, and the images per second of all processes.

    A step's losses are read when the next step has been started, so that the device never waits for the log.
    """
    totals, first = dict(begin.totals), begin.iteration
    started, images = time.perf_counter(), 0
    before: Mapping[str, float] = {}
    for i in range(first, length + 1):
        stats: Mapping[str, float] = {}
        if i < length:
            crops = [crop.to(device, non_blocking=True) for crop in next(batches)["image"]]
            stats = step(crops, begin.epoch, begin.epoch * length + i)
            images += len(crops[0]) * world_size()
        else:
            step.check()
        for name, value in before.items():
            totals[name] = totals.get(name, 0.0) + value
        if before and (i % _LOG_PERIOD == 0 or i in (first + 1, length)):
            values = "  ".join(f"{name} {value:.4g}" for name, value in before.items())
            seconds = time.perf_counter() - started
            logger.info(
                f"epoch {begin.epoch + 1}/{epochs}  iter {i}/{length}  {values}  {images / seconds:.1f} img/s  "
                f"{seconds / (i - first) * (length - i):.0f} s left"
            )
        before = stats
        if i + 1 < length:
            stop_if_asked(Progress(begin.epoch, i + 1, length, totals, stats))
    means = {f"train_{name}": total / length for name, total in totals.items()}
    return {**means, "images_per_second": images / (time.perf_counter() - started)}


def _forget_epochs_from(log: Path, start_epoch: int) -> None:
    """Drop the log's lines of epochs that will be trained again, such as a line written just before a kill."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # half a line
            if json.loads(line)["epoch"] < start_epoch:
                kept.append(line + "\n")
    with atomic_file(log) as file:
        file.write("".join(kept).encode())
