r"""Zero-shot classification with CLIPs: an image belongs to the class whose name's embedding is nearest.

    python clip/eval_zero_shot_cls.py --imagenet-root /path/to/imagenet \
        --model "CLIP B/16=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
        --model "LaSt=open_clip:ViT-B-16-quickgelu@logs/vitb16_last/checkpoints/epoch_10.pt"
    python clip/eval_zero_shot_cls.py --images flowers/test --class-names flowers.txt --per-class flowers.csv ...
    torchrun --nproc-per-node 8 clip/eval_zero_shot_cls.py ...      # every image once, whatever the number

ImageNet's 1000 classes are called as in open_clip's list and each name is embedded with CLIP's 80 prompts, so that
numbers compare with published ones; a class with synonyms scores what its best name does. The image embedding is
pooled the way the checkpoint was trained, unless `pool=` in --model says otherwise. Prints top-1, top-5 and the mean
over classes of top-1, and writes one record per model to results/.

Class embeddings are kept from run to run, found by the text tower's weights and the prompts themselves.
"""

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zero_shot_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    embed_images,
    encode_classes,
    images_name,
    load_clip_argument,
    open_class_images,
    open_loader,
    print_table,
    write_model_result,
)

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    import torch
    from class_accuracy import ClassAccuracy

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import ModelArgument

_COLUMNS = {"acc1": "top-1", "acc5": "top-5", "class_mean_acc1": "mean of classes"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("eval_zero_shot_cls.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add_loading_flags(parser)
    add_output_flags(parser)
    parser.add_argument("--per-class", type=Path, metavar="FILE.csv", help="write the accuracy of every class here")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from class_names import find_class_names

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    with process_group(args.device) as device:
        images = open_class_images(args)
        names = find_class_names(args.class_names, images.classes)
        lines, per_class = [["model", *_COLUMNS.values(), "images/s"]], []
        for argument in arguments:
            metrics, accuracy, speed = measure_model(argument, args, images, device)
            lines.append([argument.name, *(f"{metrics[key]:.2f}" for key in _COLUMNS), f"{speed:.1f}"])
            per_class += [
                {"model": argument.name, "folder": folder, "names": "; ".join(own), **row}
                for folder, own, row in zip(images.classes, names, accuracy.per_class(), strict=True)
            ]
        if not is_main_process():
            return
        print_table(lines)
        print(f"{images_name(args)}: {len(images)} images, {len(images.classes)} classes; percent")
        if args.per_class is not None:
            write_per_class(args.per_class, per_class)
            print(f"written {args.per_class}")


def measure_model(
    argument: "ModelArgument", args: argparse.Namespace, images: "ImageNetDataset", device: "torch.device"
) -> tuple[dict[str, float], "ClassAccuracy", float]:
    """One model over all images, and its record.

    Returns:
        Metrics, the accuracy of every class (of all processes), and images per second.

    Raises:
        ValueError, FileNotFoundError: As `load_clip_argument` and `encode_classes`, or embeddings that are not finite.
    """
    from class_accuracy import ClassAccuracy

    from last_vit.clip_text import zero_shot_scores
    from last_vit.dense import dense_batches
    from last_vit.runtime import describe_device, is_main_process

    clip = load_clip_argument(argument, args, device)
    text, class_of_name, text_seconds = encode_classes(clip, images, args)
    accuracy = ClassAccuracy(len(images.classes), ks=(1, 5))
    start = time.perf_counter()
    for embeddings, batch in dense_batches(
        clip.model, open_loader(args, images, clip, argument.name), device, embed_images
    ):
        accuracy.update(zero_shot_scores(embeddings, text, class_of_name), batch["label"])
    metrics = accuracy.compute()
    seconds = time.perf_counter() - start
    num_images = metrics.pop("num_images")
    if is_main_process():
        pooling = ", ".join(f"{key}={value}" for key, value in clip.pooling.items() if value is not None)
        print(f"{argument.name}: {clip.arch}, pooling {pooling} ({clip.pooling_source})")
        print("".join(f"  {note}\n" for note in clip.notes), end="")
        print(
            f"  {len(class_of_name)} class names in {text_seconds:.1f} s, {num_images} images in {seconds:.1f} s, "
            f"{describe_device(device)}"
        )
        path = write_model_result(
            args,
            argument,
            clip,
            metrics,
            n_images=num_images,
            seconds=seconds,
            device=device,
            config={"num_classes": len(images.classes), "num_class_names": len(class_of_name)},
        )
        print(f"  written {path}")
    return metrics, accuracy, num_images / seconds


def write_per_class(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write one line per model and class; UTF-8, comma-separated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
