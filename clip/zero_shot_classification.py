"""Zero-shot classification: an image belongs to the class whose name's embedding is nearest."""

import argparse
import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from class_names import ClassNames, find_class_names
from torch import Tensor
from torch.nn import functional as F
from zero_shot_models import describe_clip, embed_images, encode_names, load_clip_argument, zero_shot_scores

from last_vit.clip_models import LoadedClip
from last_vit.clip_text import read_templates
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_batches
from last_vit.evaluation import (
    eval_transform,
    folder_name,
    open_loader,
    pooling_words,
    print_table,
    say_left_out,
    write_record,
)
from last_vit.metrics import TopK
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.models import ModelArgument, parse_model_arguments
from last_vit.results import dataset_name
from last_vit.runtime import describe_device, is_main_process, process_group

TABLE = "zero_shot_cls"
_COLUMNS = {"acc1": "top-1", "acc5": "top-5", "class_mean_acc1": "mean of classes"}


class ClassAccuracy:
    """`TopK`, and how its hits fall on the C classes; streaming and distributed."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self._top_k = num_classes, TopK()
        self._counts = SummedTensors(images=(num_classes,), **{f"acc{k}": (num_classes,) for k in self._top_k.ks})

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: logits [B, C], labels long [B] in [0, C); ValueError as `TopK.update`."""
        self._top_k.update(logits, labels)
        ks = self._top_k.ks
        is_hit = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == labels[:, None]
        of_class = F.one_hot(labels, self.num_classes)
        hits = {f"acc{k}": (of_class * is_hit[:, :k].any(dim=1)[:, None]).sum(dim=0) for k in ks}
        self._counts.add(images=of_class.sum(dim=0), **hits)

    def compute(self) -> dict[str, float | int]:
        """What `TopK.compute` returns, and "class_mean_acc<k>" in percent: the mean over the classes with images."""
        rows = [row for row in self.per_class() if row["images"]]
        means = {f"class_mean_acc{k}": sum(row[f"acc{k}"] for row in rows) / len(rows) for k in self._top_k.ks}
        return {**self._top_k.compute(), **means}

    def per_class(self) -> list[dict[str, float | int | None]]:
        """Of each class "images" and "acc<k>" in percent, None for a class without images; all processes together."""
        totals = self._counts.totals()
        images = totals.pop("images")
        rows = torch.stack([images, *(100 * hits / images for hits in totals.values())], dim=1).tolist()
        return [
            {"images": int(count), **{key: value if count else None for key, value in zip(totals, shares, strict=True)}}
            for count, *shares in rows
        ]


def open_class_images(args: argparse.Namespace, boxes: bool = False) -> ImageNetDataset:
    """The labelled images of the flags, without a transform yet; says what was left out."""
    root, split = (args.images, None) if args.imagenet_root is None else (args.imagenet_root, "val")
    images = ImageNetDataset(root, split, boxes=boxes, skip_broken=args.skip_broken)
    if not images.classes:
        raise ValueError(f"{images.folder} holds images without labels; sort them into a folder per class")
    say_left_out(images.skipped)
    return images


def images_name(args: argparse.Namespace) -> str:
    """What results call the images, such as "ImageNet-1k val" or "flowers/test"."""
    if args.imagenet_root is None:
        return args.dataset_name or folder_name(args.images)
    return f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"


def open_clip_loader(args: argparse.Namespace, images: ImageNetDataset, clip: LoadedClip, title: str) -> Any:
    """Batches of this process's share of the images, as the model takes them."""
    images.transform = eval_transform(clip.preprocessing)
    return open_loader(images, title, args.batch_size, args.num_workers)


def write_model_record(
    args: argparse.Namespace,
    argument: ModelArgument,
    clip: LoadedClip,
    metrics: Mapping[str, float],
    label: str,
    config: Mapping[str, Any],
    **run: Any,
) -> Path:
    """`write_record` of one model or read-out; `config` is what the numbers depend on beside model and prompts."""
    templates = read_templates(args.templates)
    prompts = f"{len(templates)} prompts" if len(templates) > 1 else f"prompt {templates[0]!r}"
    return write_record(
        args,
        TABLE,
        label,
        metrics,
        dataset=f"{images_name(args)}, {clip.preprocessing.crop} px, {prompts}",
        config={
            **describe_clip(argument, clip, args),
            "class_names": str(args.class_names or "imagenet"),
            **config,
        },
        checkpoint_sha256=clip.checkpoint_sha256,
        **run,
    )


def run(args: argparse.Namespace) -> None:
    """All models of eval_zero_shot_cls.py; ValueError and OSError for whatever the user can mend."""
    arguments = parse_model_arguments(args.model)
    with process_group(args.device) as device:
        images = open_class_images(args)
        names = find_class_names(args.class_names, images.classes)
        lines, per_class = [["model", *_COLUMNS.values(), "images/s"]], []
        for argument in arguments:
            metrics, rows, speed = measure_model(argument, args, images, names, device)
            lines.append([argument.name, *(f"{metrics[key]:.2f}" for key in _COLUMNS), f"{speed:.1f}"])
            per_class += [
                {"model": argument.name, "folder": folder, "names": "; ".join(own), **row}
                for folder, own, row in zip(images.classes, names, rows, strict=True)
            ]
        if not is_main_process():
            return
        print_table(lines)
        print(f"{images_name(args)}: {len(images)} images, {len(images.classes)} classes; percent")
        if args.per_class is not None:
            args.per_class.parent.mkdir(parents=True, exist_ok=True)
            with args.per_class.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(per_class[0]))
                writer.writeheader()
                writer.writerows(per_class)
            print(f"written {args.per_class}")


def measure_model(
    argument: ModelArgument,
    args: argparse.Namespace,
    images: ImageNetDataset,
    names: ClassNames,
    device: torch.device,
) -> tuple[dict[str, float], list[dict[str, float | int | None]], float]:
    """One model over all images, and its record: metrics, `ClassAccuracy.per_class`, and images per second."""
    clip = load_clip_argument(argument, args.precision, device)
    text, class_of_name = encode_names(clip, names, args, device)
    accuracy = ClassAccuracy(len(images.classes))
    loader = open_clip_loader(args, images, clip, argument.name)
    start = time.perf_counter()
    for embeddings, batch in dense_batches(clip.model, loader, device, embed_images):
        accuracy.update(zero_shot_scores(embeddings, text, class_of_name), batch["label"])
    metrics = accuracy.compute()
    seconds = time.perf_counter() - start
    num_images = metrics.pop("num_images")
    if is_main_process():
        print(f"{argument.name}: {clip.arch}, pooling {pooling_words(clip.pooling, clip.pooling_source)}")
        print("".join(f"  {note}\n" for note in clip.notes), end="")
        print(f"  {len(class_of_name)} class names, {num_images} images in {seconds:.1f} s, {describe_device(device)}")
        config = {"num_classes": len(images.classes), "num_class_names": len(class_of_name)}
        counts = {"n_images": num_images, "seconds": seconds, "device": device}
        path = write_model_record(args, argument, clip, metrics, argument.name, config, **counts)
        print(f"  written {path}")
    return metrics, accuracy.per_class(), num_images / seconds
