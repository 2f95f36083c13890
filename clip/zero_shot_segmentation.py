"""What eval_zero_shot_seg.py does: the setting of the flags, a segmenter per model, mIoU, table and record."""

import argparse
import time
from dataclasses import replace
from functools import partial

import torch
from class_names import read_class_names
from label_maps import LabelRule
from miou import MeanIoU
from seg_overlays import draw_overlays
from seg_sets import MAX_LONG_SIDE, SegmentationSet, resize_samples
from seg_settings import CUSTOM, SegmentationSetting, custom_setting, find_setting
from sliding_window import plan_windows
from zero_shot_models import describe_clip, encode_names, load_clip_argument
from zero_shot_segmenter import ZeroShotSegmenter

from last_vit.clip_dense import clip_dense_features
from last_vit.clip_models import LoadedClip
from last_vit.clip_text import TEMPLATE_SETS
from last_vit.dense import find_patch_size
from last_vit.evaluation import open_loader, pooling_words, print_table, write_record
from last_vit.models import ModelArgument, parse_model_arguments
from last_vit.runtime import describe_device, is_main_process, process_group

TABLE = "zero_shot_seg"
_METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
_REPLACEABLE = ("crop", "stride", "logit_scale", "prob_threshold")
_SETTINGS = ("dataset", "short_side", *_REPLACEABLE, "area_threshold", "pad_to_patch")


def run(args: argparse.Namespace) -> None:
    """All models of the flags; ValueError and OSError for whatever the user can mend."""
    arguments = parse_model_arguments(args.model)
    setting = choose_setting(args)
    with process_group(args.device) as device:
        for argument in arguments:
            measure_model(args, argument, setting, load_clip_argument(argument, args.precision, device), device)


def measure_model(
    args: argparse.Namespace,
    argument: ModelArgument,
    setting: SegmentationSetting,
    clip: LoadedClip,
    device: torch.device,
) -> None:
    """One model's mIoU, printed, recorded and drawn."""
    own = {"class_names": setting.class_names, "zero_label": args.zero_label} if args.dataset == CUSTOM else {}
    images = SegmentationSet(args.dataset, args.root, args.split, any_count=args.any_count, **own)
    segmenter = build_segmenter(args, setting, clip, device)
    metric, resize = MeanIoU(setting.num_classes), partial(resize_samples, short_side=setting.short_side)
    start = time.perf_counter()
    for batch in open_loader(images, argument.name, args.batch_size, args.num_workers, collate=resize):
        labels = [sample["label"].to(device, non_blocking=True) for sample in batch]
        found = segmenter([sample["image"] for sample in batch], [tuple(label.shape) for label in labels])
        for prediction, label in zip(found, labels, strict=True):
            metric.update(prediction, label)
    result, seconds = metric.compute(), time.perf_counter() - start
    if not is_main_process():
        return
    source = describe_input(args, setting, images)
    metrics = {key: result[key] for key in _METRICS}
    ious = dict(zip(images.names, result["iou"], strict=True)) if args.per_class else {}
    path = write_record(
        args,
        TABLE,
        argument.name,
        metrics | {f"iou_{name}": iou for name, iou in ious.items() if iou is not None},
        dataset=source,
        n_images=len(images),
        config={
            **describe_clip(argument, clip, args),
            "last_block": args.last_block,
            **({} if args.gaussian_std is None else {"gaussian_std": args.gaussian_std}),
            "protocol": args.protocol,
            **{key: getattr(setting, key) for key in _SETTINGS},
            "pamr": setting.uses_pamr,
            "class_names": None if args.class_names is None else str(args.class_names),
            "num_classes": setting.num_classes,
            "num_absent": result["num_absent"],
        },
        checkpoint_sha256=clip.checkpoint_sha256,
        seconds=seconds,
        device=device,
    )
    print(f"\n{argument.name}: {clip.arch}, trained pooling {pooling_words(clip.pooling, clip.pooling_source)}")
    speed = f"{len(images) / seconds:.2f} images/s, {describe_device(device)}"
    print(f"{source}: {len(images)} images, {setting.num_classes} classes, {speed}")
    absent = f"; {result['num_absent']} classes occur nowhere and are left out" if result["num_absent"] else ""
    print("   ".join(f"{name} {result[key]:.2f}" for key, name in _METRICS.items()) + absent)
    if ious:
        print_table([["class", "IoU"], *([name, "-" if iou is None else f"{iou:.2f}"] for name, iou in ious.items())])
    print(f"written {path}")
    if args.overlays is not None:
        for path in draw_overlays(args.overlays, args.num_overlays, argument.name, setting, images, segmenter):
            print(f"written {path}")


def choose_setting(args: argparse.Namespace) -> SegmentationSetting:
    """The protocol's record for the data set, with what the flags replace; ValueError for flags that do not fit it."""
    if args.dataset == CUSTOM:
        if args.class_names is None:
            raise ValueError("a custom data set needs --class-names, a file with one class per line")
        name = args.dataset_name or args.root.resolve().name
        setting = custom_setting(args.protocol, read_class_names(args.class_names), args.zero_label, name)
    else:
        if args.zero_label != "class":
            raise ValueError(f"--zero-label is for custom data; what 0 means in {args.dataset} is known")
        setting = find_setting(args.dataset, args.protocol)
        if args.class_names is not None:
            setting = replace(setting, class_names=read_class_names(args.class_names, setting.num_classes))
        setting = replace(setting, name=args.dataset_name or setting.name)
    return replace_settings(setting, args)


def replace_settings(setting: SegmentationSetting, args: argparse.Namespace) -> SegmentationSetting:
    """A setting with what the flags put in place of the protocol's."""
    asked = {key: getattr(args, key) for key in ("short_side", *_REPLACEABLE) if getattr(args, key) is not None}
    if asked.get("prob_threshold") and not setting.has_background:
        raise ValueError(
            f"--prob-threshold is of the background, and {setting.name} has none; custom data: --zero-label background"
        )
    if args.pamr is not None:
        asked["uses_pamr"] = args.pamr == "on"
    return replace(setting, **asked)


def build_segmenter(
    args: argparse.Namespace, setting: SegmentationSetting, clip: LoadedClip, device: torch.device
) -> ZeroShotSegmenter:
    """A CLIP as a segmenter of the setting's classes; ValueError for windows or a block that it cannot have."""
    prep = clip.preprocessing
    patch_size = find_patch_size(clip.model, prep.crop)
    plan_windows((setting.short_side,) * 2, setting.crop, setting.stride, patch_size)  # errors before the work
    if args.gaussian_std is not None and args.last_block != "naclip":
        raise ValueError(f"--gaussian-std is the width of --last-block naclip, but the block is {args.last_block}")
    width = {} if args.gaussian_std is None else {"gaussian_std": args.gaussian_std}
    text, class_of_name = encode_names(clip, setting.class_names, args, device)
    crop, stride = setting.crop, setting.stride
    if not crop and setting.protocol == "naclip":
        # a whole image's scores are stretched to that image, then to the annotation, as those of one window are
        crop = stride = MAX_LONG_SIDE
    return ZeroShotSegmenter(
        dense=partial(clip_dense_features, clip.model, last_block=args.last_block, **width),
        text=text,
        rule=LabelRule(class_of_name, setting.logit_scale, setting.prob_threshold, setting.area_threshold),
        mean=prep.mean,
        std=prep.std,
        patch_size=patch_size,
        crop=crop,
        stride=stride,
        pad_to_patch=setting.pad_to_patch,
        uses_pamr=setting.uses_pamr,
        window_batch=args.window_batch,
    )


def describe_input(args: argparse.Namespace, setting: SegmentationSetting, images: SegmentationSet) -> str:
    """What was measured in words, such as "COCO-Stuff val, 336 px, naclip, no PAMR, naclip block".

    Runs that differ in it are never one row.
    """
    usual = setting if args.dataset == CUSTOM else find_setting(args.dataset, args.protocol)
    parts = [f"{setting.name} {args.split}", f"{setting.short_side} px", args.protocol]
    if args.pamr is not None and (args.dataset == CUSTOM or setting.uses_pamr != usual.uses_pamr):
        parts.append("PAMR" if setting.uses_pamr else "no PAMR")
    if args.last_block != "vanilla":
        width = "" if args.gaussian_std is None else f" of std {args.gaussian_std:g}"
        parts.append(f"{args.last_block} block{width}")
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
