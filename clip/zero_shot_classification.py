"""Zero-shot classification: an image belongs to the class whose name's embedding is nearest.

`run` is eval_zero_shot_cls.py, and top_k_table.py, which reads every model in several ways.
"""

import argparse
import csv
import time
from collections.abc import Mapping
from typing import Any

import torch
from class_names import ClassNames, find_class_names
from read_outs import attach_read_outs, dense_read_outs, list_pools
from torch import Tensor, nn
from torch.nn import functional as F
from zero_shot_models import (
    as_weights,
    describe_clip,
    embed_images,
    encode_names,
    load_clip_argument,
    read_once,
    zero_shot_scores,
)

from last_vit.adapters import DenseOutput
from last_vit.boxes import is_small_box
from last_vit.clip_text import read_templates
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_batches
from last_vit.evaluation import (
    eval_transform,
    folder_name,
    open_loader,
    pooling_words,
    print_metrics,
    say_left_out,
    write_record,
)
from last_vit.metrics import PointInBox, TopK
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.models import ModelArgument, naming, parse_model_arguments
from last_vit.patch_scores import patch_score
from last_vit.results import dataset_name
from last_vit.runtime import describe_device, is_main_process, process_group

_COLUMNS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "class_mean_acc1": "mean of classes",
    "point_in_box": "PiB",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
    "point_in_box_max": "attainable",
}


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


def run(args: argparse.Namespace) -> None:
    """All models of the flags; ValueError and OSError for whatever the user can mend."""
    arguments = parse_model_arguments(args.model)
    if not 0 < args.max_box_area <= 1:
        raise ValueError(f"--max-box-area is a share of the image in (0, 1], got {args.max_box_area}")
    if args.point_in_box and args.imagenet_root is None:
        raise ValueError("--point-in-box needs ImageNet's boxes: give --imagenet-root in place of --images")
    with process_group(args.device) as device:
        root, split = (args.images, None) if args.imagenet_root is None else (args.imagenet_root, "val")
        images = ImageNetDataset(root, split, boxes=args.point_in_box, skip_broken=args.skip_broken)
        if not images.classes:
            raise ValueError(f"{images.folder} holds images without labels; sort them into a folder per class")
        say_left_out(images.skipped)
        names = find_class_names(args.class_names, images.classes)
        rows, per_class = [], []
        for argument in arguments:
            for label, metrics, classes in measure_model(argument, args, images, names, device):
                rows.append(([label], metrics))
                per_class += [
                    {"model": label, "folder": folder, "names": "; ".join(own), **row}
                    for folder, own, row in zip(images.classes, names, classes, strict=True)
                ]
        if not is_main_process():
            return
        print_metrics(["model"], _COLUMNS, rows)
        boxes = f", {rows[0][1]['num_boxes']} with one small box" if args.point_in_box else ""
        print(f"{images_name(args)}: {len(images)} images{boxes}, {len(images.classes)} classes; percent")
        if args.per_class is not None:
            args.per_class.parent.mkdir(parents=True, exist_ok=True)
            with args.per_class.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(per_class[0]))
                writer.writeheader()
                writer.writerows(per_class)
            print(f"written {args.per_class}")


def read_images(model: nn.Module, images: Tensor) -> list[DenseOutput]:
    """`dense_read_outs` in the dtype of the model."""
    return dense_read_outs(model, as_weights(model, images))


def images_name(args: argparse.Namespace) -> str:
    """What results call the images, such as "ImageNet-1k val" or "flowers/test"."""
    if args.imagenet_root is None:
        return args.dataset_name or folder_name(args.images)
    return f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"


def measure_model(
    argument: ModelArgument,
    args: argparse.Namespace,
    images: ImageNetDataset,
    names: ClassNames,
    device: torch.device,
) -> list[tuple[str, Mapping[str, float], list[dict[str, Any]]]]:
    """One model in one pass over the images, and its records: label, metrics and `per_class` of each read-out."""
    clip, pools = load_clip_argument(argument, args.precision, device), []
    if args.pool or args.point_in_box:
        with naming(argument):
            pools = list_pools(clip.model, args.pool, args.top_k)
            attach_read_outs(clip.model, pools)
            read_once(clip, device, read_images)
    words = [pool.kind if pool.top_k is None else f"{pool.kind} K={pool.top_k}" for pool in pools]
    labels = [argument.name, *(f"{argument.name}, read with {each}" for each in words[1:])]
    prep, templates = clip.preprocessing, read_templates(args.templates)
    accuracies = [ClassAccuracy(len(images.classes)) for _ in labels]
    hits = [PointInBox(prep.crop, prep.resize) for _ in labels if args.point_in_box]
    text, class_of_name = encode_names(clip, names, args, device)
    images.transform = eval_transform(prep)
    loader = open_loader(images, argument.name, args.batch_size, args.num_workers)
    start = time.perf_counter()
    for found, batch in dense_batches(clip.model, loader, device, read_images if pools else embed_images):
        embeddings = [output.logits for output in found] if pools else [found]
        for accuracy, embedding in zip(accuracies, embeddings, strict=True):
            accuracy.update(zero_shot_scores(embedding, text, class_of_name), batch["label"])
        for hit, output in zip(hits, found, strict=False):  # no hits without --point-in-box
            is_small = is_small_box(batch["box_xyxy"], batch["image_hw"], args.max_box_area)
            boxes = batch["box_xyxy"].masked_fill(~is_small[:, None], float("nan"))
            hit.update(patch_score(output.patch_tokens, output.global_token), boxes, batch["image_hw"], output.grid_hw)
    results = [accuracy.compute() for accuracy in accuracies]
    for metrics, hit in zip(results, hits, strict=False):
        boxed = hit.compute()
        metrics |= {"num_boxes": boxed.pop("num_images"), **boxed}
    seconds = time.perf_counter() - start
    if is_main_process():
        print(f"{argument.name}: {clip.arch}, pooling {pooling_words(clip.pooling, clip.pooling_source)}")
        print("".join(f"  {note}\n" for note in clip.notes), end="")
        speed = f"{len(images) / seconds:.1f} images/s, {describe_device(device)}"
        print(f"  {len(class_of_name)} class names, {len(images)} images, {speed}")
        prompts = f"{len(templates)} prompts" if len(templates) > 1 else f"prompt {templates[0]!r}"
        config = {"class_names": str(args.class_names or "imagenet")}
        config |= {"num_classes": len(images.classes), "num_class_names": len(class_of_name)}
        if pools:
            config |= {"read_outs_of_the_pass": len(pools), "max_box_area": args.max_box_area}
        for label, metrics, pool in zip(labels, results, pools or [None], strict=True):
            if pool is not None:
                read_out = {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant}
                config |= {"read_out": read_out}
            path = write_record(
                args,
                "zero_shot_cls",
                label,
                metrics,
                dataset=f"{images_name(args)}, {prep.crop} px, {prompts}",
                n_images=metrics.pop("num_images"),
                config={**describe_clip(argument, clip, args), **config},
                checkpoint_sha256=clip.checkpoint_sha256,
                seconds=seconds,
                device=device,
            )
            print(f"  written {path}")
    return list(zip(labels, results, [accuracy.per_class() for accuracy in accuracies], strict=True))
