"""What an evaluation of segmentation leaves behind: lines on the terminal and a record in results/."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from seg_sets import SegmentationSet
from seg_settings import CUSTOM, SegmentationSetting, find_setting
from zero_shot_cli import print_table

from last_vit.clip_models import LoadedClip
from last_vit.clip_text import TEMPLATE_SETS, read_templates
from last_vit.models import ModelArgument
from last_vit.results import result_name, write_result
from last_vit.runtime import describe_device

TABLE = "zero_shot_seg"
_METRICS = ("miou", "pixel_accuracy", "mean_accuracy")
_REPLACEABLE = ("crop", "stride", "logit_scale", "prob_threshold")


def describe_input(args: argparse.Namespace, setting: SegmentationSetting, images: SegmentationSet) -> str:
    """Data set, size and protocol in words, as results name them: runs that differ in it are never one row.

    Returns:
        Such as "VOC20 val, 336 px, sclip" or "COCO-Stuff val, 336 px, naclip, no PAMR, naclip block".
    """
    usual = setting if args.dataset == CUSTOM else find_setting(args.dataset, args.protocol)
    parts = [f"{setting.name} {args.split}", f"{setting.short_side} px", args.protocol]
    if args.pamr is not None and (args.dataset == CUSTOM or setting.uses_pamr != usual.uses_pamr):
        parts.append("PAMR" if setting.uses_pamr else "no PAMR")
    if args.last_block != "vanilla":
        parts.append(f"{args.last_block} block")
    for key in _REPLACEABLE:
        value = getattr(args, key)
        if value is not None and (args.dataset == CUSTOM or value != getattr(usual, key)):
            parts.append(f"{key.replace('_', ' ')} {value:g}")
    if args.class_names is not None and args.dataset != CUSTOM:
        parts.append(f"names of {args.class_names.name}")
    if args.templates != "openai":
        is_set = args.templates in TEMPLATE_SETS
        parts.append(f"{args.templates} prompts" if is_set else f"prompts {args.templates!r}")
    if not images.is_complete:
        parts.append(f"{len(images)} of {images.expected_images} images")
    return ", ".join(parts)


def print_result(
    args: argparse.Namespace,
    argument: ModelArgument,
    setting: SegmentationSetting,
    clip: LoadedClip,
    images: SegmentationSet,
    result: Mapping[str, Any],
    seconds: float,
    device: torch.device,
) -> None:
    """One model's numbers, and with --per-class a line for every class.

    Args:
        args: The command line.
        argument: The model as it was asked for.
        setting: As it was used.
        clip: As it was loaded.
        images: What was segmented.
        result: From `MeanIoU.compute`.
        seconds: Of the loop over the images.
        device: Where it ran.
    """
    pooling = ", ".join(f"{key}={value}" for key, value in clip.pooling.items() if value is not None)
    print(f"\n{argument.name}: {clip.arch}, trained pooling {pooling} ({clip.pooling_source})")
    print(
        f"{describe_input(args, setting, images)}: {len(images)} images, {setting.num_classes} classes, "
        f"{len(images) / seconds:.2f} images/s, {describe_device(device)}"
    )
    absent = f"; {result['num_absent']} classes occur nowhere and are left out" if result["num_absent"] else ""
    print(
        f"mIoU {result['miou']:.2f}   pixel accuracy {result['pixel_accuracy']:.2f}   "
        f"mean accuracy {result['mean_accuracy']:.2f}{absent}"
    )
    if args.per_class:
        ious = zip(images.names, result["iou"], strict=True)
        print_table([["class", "IoU"], *([name, "-" if iou is None else f"{iou:.2f}"] for name, iou in ious)])


def write_record(
    args: argparse.Namespace,
    argument: ModelArgument,
    setting: SegmentationSetting,
    clip: LoadedClip,
    images: SegmentationSet,
    result: Mapping[str, Any],
    seconds: float,
    device: torch.device,
) -> Path:
    """Write `results/<output>_<model>_<input>.json`; arguments as in `print_result`."""
    source = describe_input(args, setting, images)
    metrics = {key: result[key] for key in _METRICS}
    if args.per_class:
        ious = zip(images.names, result["iou"], strict=True)
        metrics |= {f"iou_{name}": iou for name, iou in ious if iou is not None}
    is_set = args.templates in TEMPLATE_SETS
    return write_result(
        result_name(f"{args.output}_{argument.name}_{source}"),
        metrics,
        n_images=len(images),
        dataset=source,
        config={
            "model": argument.spec,
            "arch": clip.arch,
            "checkpoint": argument.checkpoint,
            "random_seed": argument.seed,
            "pooling": clip.pooling,
            "pooling_source": clip.pooling_source,
            "precision": args.precision,
            "last_block": args.last_block,
            "protocol": args.protocol,
            **{key: getattr(setting, key) for key in ("dataset", "short_side", "crop", "stride", "logit_scale")},
            **{key: getattr(setting, key) for key in ("prob_threshold", "area_threshold", "pad_to_patch")},
            "pamr": setting.uses_pamr,
            "class_names": None if args.class_names is None else str(args.class_names),
            "templates": args.templates if is_set else list(read_templates(args.templates)),
            "num_classes": setting.num_classes,
            "num_absent": result["num_absent"],
        },
        checkpoint_sha256=clip.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=TABLE if args.table else None,
        row=argument.name if args.table else None,
    )
