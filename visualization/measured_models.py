"""The models and images that a diagnostic's flags name, one model after the other, and the record of each."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from foreground_images import ForegroundImages

from last_vit.evaluation import (
    check_model,
    describe_model,
    eval_transform,
    folder_name,
    naming,
    say_left_out,
    write_record,
)
from last_vit.models import ModelArgument, TrainedModel, parse_model_arguments
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import is_main_process, process_group

_RELEASE_MODEL = "torchvision:vit_b_16"


def models_of(args: argparse.Namespace) -> list[ModelArgument]:
    """The models of --model, and of the release's --checkpoint, which is for the one model that names no weights.

    Raises:
        ValueError: Bad model texts, neither of the two, or --checkpoint that no single model waits for.
    """
    if getattr(args, "checkpoint", None) is None:
        if not args.model:
            raise ValueError("no model: give --model, or the release's --checkpoint with weights of a ViT-B/16")
        return parse_model_arguments(args.model)
    arguments = parse_model_arguments(args.model or [_RELEASE_MODEL])
    if len(arguments) > 1 or arguments[0].checkpoint is not None or arguments[0].seed is not None:
        raise ValueError(
            f"--checkpoint is for one --model that names no weights, got {' '.join(args.model)}; name each model's "
            "own: --model SPEC@CHECKPOINT"
        )
    named = parse_model_arguments([f"{_RELEASE_MODEL}@{args.checkpoint}"])
    return named if not args.model else [replace(arguments[0], checkpoint=str(args.checkpoint))]


def check_image_flags(args: argparse.Namespace) -> None:
    """Refuse flags that would be ignored beside the way in which the images were named.

    Raises:
        ValueError: Names the flags that go together.
    """
    if args.imagenet_root is None and args.imagenet_label_dir is not None:
        raise ValueError("--imagenet-label-dir goes with --imagenet-root; for --images give --boxes")
    if args.imagenet_root is not None and (args.boxes is not None or args.masks is not None):
        raise ValueError("--boxes and --masks go with --images; for --imagenet-root give --imagenet-label-dir")


def open_images(args: argparse.Namespace, preprocessing: Preprocessing) -> ForegroundImages:
    """The images of `diagnostic_cli.add_image_flags`, as a model takes them; says what was left out.

    Raises:
        ValueError, FileNotFoundError: As `ForegroundImages`.
    """
    transform = eval_transform(preprocessing)
    images = ForegroundImages(args.images, transform, args.boxes, args.masks, args.skip_broken)
    say_left_out(images.skipped)
    return images


def image_set_name(args: argparse.Namespace) -> str:
    """What results call the images: --dataset-name, or the last two folders of --images ("coco/val2017")."""
    return args.dataset_name or folder_name(args.images)


class Measurement(NamedTuple):
    """What a diagnostic found of one model; everything but `metrics` and `seconds` as in `write_record`."""

    metrics: Mapping[str, float]
    n_images: int
    protocol: str  # what the numbers depend on besides data and input, in a few words
    config: Mapping[str, Any]  # everything else that they depend on


def each_model(
    args: argparse.Namespace, device: torch.device
) -> Iterator[tuple[ModelArgument, TrainedModel, ForegroundImages]]:
    """Every model of --model as asked for and as loaded, on `device`, with the images as it takes them."""
    for argument in models_of(args):
        trained = argument.load(args.image_size, args.resize)
        images = open_images(args, trained.preprocessing)
        trained.model.to(device)
        yield argument, trained, images
        trained.model.cpu()


def measure_models(
    args: argparse.Namespace, table: str, measure: Callable[..., tuple[Any, list[Measurement]]]
) -> list[Any]:
    """Measure every model on its images, and keep a record of each measurement.

    Args:
        args: With the flags of models, images, loading and records; with --global-token all models are tried first.
        table: Of the records.
        measure: Takes a model's name, the model on its device, its images, `args` and the device; returns what is drawn
            and printed of it, and its measurements, the same in every process.

    Returns:
        What is drawn and printed, in the main process; nothing elsewhere.

    Raises:
        ValueError: As `measure`; the message names the model.
    """
    shown = []
    with process_group(args.device) as device:
        if hasattr(args, "global_token"):
            for argument in models_of(args):
                check_model(argument, device, args.image_size, args.resize, args.global_token)
        for argument, trained, images in each_model(args, device):
            start = time.perf_counter()
            with naming(argument):
                view, measurements = measure(argument.name, trained, images, args, device)
            seconds = time.perf_counter() - start
            shown.append(view)
            for found in measurements:
                left_out = {"left_out": dict(images.skipped)}
                found = found._replace(config={**found.config, **left_out})
                record_model(args, table, argument, trained, found, seconds, device)
        return shown if is_main_process() else []


def record_model(
    args: argparse.Namespace,
    table: str,
    argument: ModelArgument,
    trained: TrainedModel,
    found: Measurement,
    seconds: float,
    device: torch.device,
) -> Path | None:
    """Keep what was measured of one model, as `write_record`; the path, in the main process."""
    if not is_main_process():
        return None
    return write_record(
        args,
        table,
        argument.name,
        found.metrics,
        dataset=f"{image_set_name(args)}, {trained.preprocessing.crop} px, {found.protocol}",
        n_images=found.n_images,
        config={**describe_model(argument, trained), **found.config},
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
    )
