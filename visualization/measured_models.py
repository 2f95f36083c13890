"""The models and images that a diagnostic's flags name, one model after the other, and their record."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from foreground_images import ForegroundImages
from torch.utils.data import Subset

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.imagenet_layout import find_annotation_folder, find_split_folder
from last_vit.dense import choose_global_token, dense_forward
from last_vit.evaluation import (
    describe_model,
    eval_transform,
    folder_name,
    label_record,
    open_loader,
    say_left_out,
    write_run,
)
from last_vit.models import ModelArgument, TrainedModel, naming, parse_model_arguments
from last_vit.pooling import LaStPool
from last_vit.preprocessing import Preprocessing
from last_vit.results import dataset_name
from last_vit.runtime import is_main_process, process_group

_RELEASE_MODEL = "torchvision:vit_b_16"
Images = ForegroundImages | ImageNetDataset


def models_of(args: argparse.Namespace) -> list[ModelArgument]:
    """The models of --model, and of the release's --checkpoint, which is for the one model that names no weights."""
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
    """Refuse flags that would be ignored beside the way in which the images were named."""
    if args.imagenet_root is None and args.imagenet_label_dir is not None:
        raise ValueError("--imagenet-label-dir goes with --imagenet-root; for --images give --boxes")
    if args.imagenet_root is not None and (args.boxes is not None or args.masks is not None):
        raise ValueError("--boxes and --masks go with --images; for --imagenet-root give --imagenet-label-dir")


def open_images(args: argparse.Namespace) -> ForegroundImages:
    """The images of `diagnostic_cli.add_image_flags`; says what was left out.

    --imagenet-root becomes --images and, where its boxes are found and nothing else says what is object, --boxes.
    """
    if getattr(args, "imagenet_root", None) is not None:
        args.images = find_split_folder(args.imagenet_root, "val")
        if args.boxes is None and args.masks is None:
            try:
                args.boxes = find_annotation_folder(args.images, "val", args.imagenet_label_dir)
            except FileNotFoundError:
                if args.imagenet_label_dir is not None:
                    raise
                if is_main_process():
                    print(f"no XML boxes beside {args.images}: what is object is not known", file=sys.stderr)
    transform = eval_transform(Preprocessing())  # each model's takes its place
    images = ForegroundImages(args.images, transform, args.boxes, args.masks, args.skip_broken)
    say_left_out(images.skipped)
    return images


def open_imagenet(args: argparse.Namespace, **options: Any) -> ImageNetDataset:
    """The validation images of --imagenet-root, after which the results are called; errors as `ImageNetDataset`."""
    images = ImageNetDataset(args.imagenet_root, "val", skip_broken=args.skip_broken, **options)
    args.dataset_name = f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"
    return images


def open_boxes(args: argparse.Namespace, max_box_area: float | None) -> ImageNetDataset:
    """Those with one object, whose box covers less than a share of the image."""
    about = {"annotation_root": args.imagenet_label_dir, "max_box_area": max_box_area}
    return open_imagenet(args, boxes=True, single_object=True, **about)


def left_out(images: Images) -> dict[str, int]:
    """Images that do not count, by reason."""
    return {**images.filtered, **images.skipped}


def image_set_name(args: argparse.Namespace) -> str:
    """What results call the images: --dataset-name, or the last two folders of --images ("coco/val2017")."""
    return args.dataset_name or folder_name(args.images)


class Subject(NamedTuple):
    """One model that a command measures, on `device`, and the images as it takes them."""

    args: argparse.Namespace
    argument: ModelArgument
    trained: TrainedModel
    images: Images
    device: torch.device

    def batches(self, chosen: Sequence[int] | None = None) -> Iterable[dict[str, Any]]:
        """This process's share of the images, or of the chosen ones."""
        images = self.images if chosen is None else Subset(self.images, chosen)
        return open_loader(images, self.argument.name, self.args.batch_size, self.args.num_workers)


class Measurement(NamedTuple):
    """What a diagnostic found of one model, as `label_record` takes it."""

    metrics: Mapping[str, float]
    n_images: int
    protocol: str  # what the numbers depend on besides data and input, in a few words
    config: Mapping[str, Any]  # everything else that they depend on
    by_layer: list[dict[str, float | str]] | None = None


def each_model(
    args: argparse.Namespace,
    device: torch.device,
    images: Images,
    arguments: Sequence[ModelArgument] | None = None,
) -> Iterator[tuple[ModelArgument, TrainedModel]]:
    """Every model, of --model by default, as asked for and as loaded, on `device`; the images are as it takes them."""
    for argument in models_of(args) if arguments is None else arguments:
        trained = argument.load(args.image_size, args.resize, opts=getattr(args, "opts", ()))
        images.transform = eval_transform(trained.preprocessing)
        trained.model.to(device)
        yield argument, trained
        trained.model.cpu()


def vote_selections(models: Sequence[TrainedModel]) -> list[LaStPool]:
    """LaSt's selection for the votes of each model; one not pooled with LaSt has the first other's K, or 1 without."""
    own = [trained.pooling.get("top_k") for trained in models]
    shared = next(filter(None, own), 1)
    return [trained.selection(top_k or shared) for trained, top_k in zip(models, own, strict=True)]


def measure_models(
    args: argparse.Namespace,
    table: str,
    measure: Callable[[Subject], tuple[Any, list[Measurement]]],
    images: Images | None = None,
    arguments: Sequence[ModelArgument] | None = None,
) -> list[Any]:
    """Measure every model on the images, those of `open_images` by default, and keep all in one record.

    Errors name the model. Of several models that are compared with a --global-token, each is tried before any is
    measured. `measure` gives what is drawn and printed of a model, and its measurements, the same in every process.
    What is drawn and printed is returned in the main process, nothing elsewhere.
    """
    shown, records, path = [], [], None
    arguments = models_of(args) if arguments is None else arguments
    with process_group(args.device) as device:
        if len(arguments) > 1 and hasattr(args, "global_token"):
            for argument in arguments:
                check_model(argument, args, device)
        images = open_images(args) if images is None else images
        for argument, trained in each_model(args, device, images, arguments):
            start = time.perf_counter()
            with naming(argument):
                view, measurements = measure(Subject(args, argument, trained, images, device))
            seconds = time.perf_counter() - start
            shown.append(view)
            for found in measurements if is_main_process() else []:
                config = {**describe_model(argument, trained), **found.config, "left_out": left_out(images)}
                record = label_record(
                    args,
                    table,
                    argument.name,
                    found.metrics,
                    dataset=f"{image_set_name(args)}, {trained.preprocessing.crop} px, {found.protocol}",
                    n_images=found.n_images,
                    config=config,
                    checkpoint_sha256=trained.checkpoint_sha256,
                    seconds=seconds,
                    device=device,
                    by_layer=found.by_layer,
                )
                records.append(record)
                path = write_run(args, table, records, path)  # at once, so that a run cut short keeps what it has
                speed = f"{found.n_images} images in {seconds:.1f} s, {record.images_per_second:.1f} images/s"
                print(f"{argument.name}: {speed}")
        if path is not None:
            print(f"record {path}")
        return shown if is_main_process() else []


def check_model(argument: ModelArgument, args: argparse.Namespace, device: torch.device) -> None:
    """Load a model and read one black image, so that a token or a K that it lacks stops before the work."""
    trained = argument.load(args.image_size, args.resize)
    side = trained.preprocessing.crop
    with naming(argument), torch.inference_mode():
        output = dense_forward(trained.model.to(device), torch.zeros(1, 3, side, side, device=device))
        choose_global_token(output, args.global_token, trained.selection())
