"""The training loop of main_dino.py: networks and data from the flags, epochs, log and checkpoints."""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from dino_backbone import attach_pooling, build_backbone, has_batch_norm
from dino_checkpoint import resume_run, save_run
from dino_data import MultiCropAugmentation, open_training_images
from dino_head import DinoHead, MultiCrop
from dino_loss import NUM_TEACHER_VIEWS, DinoLoss
from dino_optimizers import build_optimizer, cosine_schedule, parameter_groups, temperature_schedule
from dino_options import check_options, crop_sizes
from dino_step import DinoStep, Schedules
from torch import nn
from torch.utils.data import DataLoader

from last_vit.atomic_file import atomic_file
from last_vit.data.loaders import build_train_loader
from last_vit.runtime import get_logger, is_main_process, process_group, seed_everything, world_size
from last_vit.train_lib import check_same_start, turn_on_fused_pool

_LOG_PERIOD = 10  # iterations per log line, as in DINO
logger = get_logger("dino")


def train(args: argparse.Namespace) -> None:
    """Train what main_dino.py's flags describe, from the start or from `output_dir/checkpoint.pth`.

    Raises:
        ValueError: Flags, data, checkpoint and network that do not belong together.
        FileNotFoundError: No data.
        FloatingPointError: The loss or a weight is not finite; the last checkpoint is good.
    """
    check_options(args)
    if args.fused_pool:
        turn_on_fused_pool()
    with joined_processes(args.dist_url) as device:
        get_logger("dino")  # now that the rank is known
        seed_everything(args.seed)
        torch.backends.cudnn.benchmark = True
        loader, epoch_length = _open_data(args)
        step, pooling = build_step(args, epoch_length, device)
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        start_epoch = resume_run(folder, step, vars(args), pooling)
        check_same_start(start_epoch, folder)
        if start_epoch:
            logger.info("Resuming from %s after %d epochs", folder / "checkpoint.pth", start_epoch)
        loader.batch_sampler.start_iteration = start_epoch * epoch_length
        batches = iter(loader)
        if is_main_process():
            _forget_epochs_from(folder / "log.txt", start_epoch)
        for epoch in range(start_epoch, args.epochs):
            stats = _train_epoch(step, batches, epoch, args.epochs, epoch_length, device)
            if is_main_process():
                with open(folder / "log.txt", "a", encoding="utf-8") as file:
                    file.write(json.dumps({**stats, "epoch": epoch}) + "\n")
                save_run(folder, step, epoch, vars(args), pooling)


def build_step(args: argparse.Namespace, epoch_length: int, device: torch.device) -> tuple[DinoStep, dict[str, Any]]:
    """Student, teacher, loss, optimizer and schedules from the checked flags, for `epoch_length` iterations per epoch.

    Returns:
        The step, and the pooling as checkpoints record it.
    """
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


@contextlib.contextmanager
def joined_processes(dist_url: str) -> Iterator[torch.device]:
    """This process's device, with the process group up where a launcher has set RANK and WORLD_SIZE.

    Processes meet at `dist_url` (env://, tcp:// or file://) when another launcher than torchrun started them.
    """
    other_launcher = {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_torchelastic_launched()
    if other_launcher:
        process, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=dist_url, rank=process, world_size=processes)
    try:
        with process_group() as device:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            yield device
    finally:
        if other_launcher:
            dist.destroy_process_group()


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
    images = open_training_images(args.data_path, augmentation)
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
    step: DinoStep, batches: Iterator[dict[str, Any]], epoch: int, epochs: int, length: int, device: torch.device
) -> dict[str, float]:
    """One epoch; returns its means as DINO logs them, and the images per second of all processes.

    A step's losses are read when the next step has been started, so that the device never waits for the log.
    """
    totals: dict[str, float] = {}
    started, images = time.perf_counter(), 0
    before: Mapping[str, float] = {}
    for i in range(length + 1):
        stats: Mapping[str, float] = {}
        if i < length:
            crops = [crop.to(device, non_blocking=True) for crop in next(batches)["image"]]
            stats = step(crops, epoch, epoch * length + i)
            images += len(crops[0]) * world_size()
        else:
            step.check()
        for name, value in before.items():
            totals[name] = totals.get(name, 0.0) + value
        if before and (i % _LOG_PERIOD == 0 or i == length):
            values = "  ".join(f"{name} {value:.4g}" for name, value in before.items())
            seconds = time.perf_counter() - started
            logger.info(
                f"epoch {epoch + 1}/{epochs}  iter {i}/{length}  {values}  {images / seconds:.1f} img/s  "
                f"{seconds / i * (length - i):.0f} s left"
            )
        before = stats
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
