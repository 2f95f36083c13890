"""Point-in-Box of one model or of many: images, pass, protocol in words, table and records (paper tables 1 and 3)."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from measured_models import Measurement, check_image_flags, image_set_name, models_of, open_images, record_model
from torch.utils.data import Dataset, Subset

from last_vit.data.imagenet import ImageNetDataset
from last_vit.evaluation import check_model, eval_transform, naming, open_loader, pooling_words, print_table
from last_vit.metrics import PointInBox, TopK
from last_vit.metrics.patch_norms import PatchNorms
from last_vit.models import ModelArgument, TrainedModel, load_trained_model
from last_vit.patch_hit import count_patch_hits
from last_vit.preprocessing import Preprocessing
from last_vit.results import dataset_name
from last_vit.runtime import describe_device, is_main_process, process_group

_COLUMNS = {
    "high_norm": "high norm",
    "outlier_share": "outliers %",
    "point_in_box": "Point-in-Box",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
    "acc1": "top-1",
    "num_images": "images",
}


class BoxedImages(NamedTuple):
    """Images that show one object each."""

    dataset: Dataset  # samples with "image", "box_xyxy" and "image_hw", and "label" when there are classes
    name: str  # what records call them
    num_classes: int | None  # of the labels
    left_out: dict[str, int]  # images that do not count, reason -> count
    annotated: Any  # the data set behind `dataset`, whose attribute `transform` makes "image"


def run(args: argparse.Namespace) -> None:
    """The commands evaluate_patch_hit.py and point_in_box_table.py."""
    if args.imagenet_meta is not None and not args.imagenet_meta.is_file():
        raise FileNotFoundError(f"no file at --imagenet-meta {args.imagenet_meta}; it is not needed, leave it out")
    arguments = asked_models(args)
    check_image_flags(args)
    images = open_folder(args) if args.imagenet_root is None else open_imagenet(args)
    args.dataset_name = images.name
    rows, notes = {}, []
    with process_group(args.device) as device:
        if len(arguments) > 1:  # so that a mistake in the last one shows at once
            for argument in arguments:
                check_model(argument, device, args.image_size, args.resize, args.global_token)
        for argument in arguments:
            rows[argument.name], note = measure_model(argument, args, images, device)
            notes.append(f"{argument.name}: {note}")
        if is_main_process():
            print_metrics(rows)
            print("\n".join(notes))
            print(closing_words(args, images))


def asked_models(args: argparse.Namespace) -> list[ModelArgument]:
    """The models of --model and --checkpoint, and of --pool, --top-k and --variant, which go with one model.

    With --global-token last, --top-k and --variant shape that token and not the pooling, unless that is LaSt's as well.

    Raises:
        ValueError: As `models_of`, or options of one model beside several.
    """
    arguments = models_of(args)
    asked = {key: getattr(args, key) for key in ("pool", "top_k", "variant") if getattr(args, key) is not None}
    if len(arguments) > 1 and (asked or args.opts):
        raise ValueError(
            "--opts, --pool, --top-k and --variant go with one model; give each model its own: "
            "--model SPEC@CHECKPOINT,pool=last,top_k=7,variant=paper"
        )
    if args.global_token == "last" and asked.get("pool", arguments[0].pool) != "last":  # noqa: S105 (no password)
        asked = {key: value for key, value in asked.items() if key == "pool"}
    return [replace(argument, **asked) for argument in arguments]


def open_imagenet(args: argparse.Namespace) -> BoxedImages:
    """The single-object images of ImageNet's layout; errors as `ImageNetDataset`."""
    dataset = ImageNetDataset(
        args.imagenet_root,
        "val",
        boxes=True,
        annotation_root=args.imagenet_label_dir,
        single_object=True,
        max_box_area=args.max_box_area,
        skip_broken=args.skip_broken,
    )
    name = f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"
    return BoxedImages(dataset, name, len(dataset.classes), {**dataset.filtered, **dataset.skipped}, dataset)


def open_folder(args: argparse.Namespace) -> BoxedImages:
    """The single-object images of any folder with boxes.

    Raises:
        ValueError, FileNotFoundError: As `ForegroundImages`; no boxes, or no image with exactly one small enough box.
    """
    images = open_images(args, Preprocessing())
    kept, left_out = images.single_objects(args.max_box_area)
    if not kept:
        raise ValueError(
            f"no image of {args.images} has exactly one object, with a box below --max-box-area: {dict(left_out)}"
        )
    return BoxedImages(Subset(images, kept), image_set_name(args), None, {**left_out, **images.skipped}, images)


def measure_model(
    argument: ModelArgument, args: argparse.Namespace, images: BoxedImages, device: torch.device
) -> tuple[dict[str, float], str]:
    """One pass of a model, every image once over all processes, and its record.

    Returns:
        What `PointInBox.compute` and, where the labels are those of the model's head, `TopK.compute` give; where a
        cut-off can be fitted, "outlier_share" (percent) and "high_norm" (1 or 0). And what it was, in words.

    Raises:
        ValueError: As `load_trained_model`, `count_patch_hits` and the metrics; the message names the model.
    """
    with naming(argument):
        trained = load_trained_model(
            argument.spec,
            argument.checkpoint,
            opts=args.opts,
            image_size=args.image_size,
            resize=args.resize,
            pool=argument.pool,
            top_k=argument.top_k,
            variant=argument.variant,
            random_seed=argument.seed,
        )
        last_pool = trained.selection(args.top_k, args.variant)
        prep, norms, norm_words = trained.preprocessing, PatchNorms(), ""
        images.annotated.transform = eval_transform(prep)
        point_in_box = PointInBox(prep.crop, prep.resize, args.hit_rule)
        top_k = TopK() if _has_classes(argument, trained, images) else None
        model = trained.model.to(device)
        loader = open_loader(images.dataset, argument.name, args.batch_size, args.num_workers)
        start = time.perf_counter()
        count_patch_hits(model, loader, device, point_in_box, top_k, args.global_token, last_pool, norms)
        metrics = {**(top_k.compute() if top_k else {}), **point_in_box.compute()}
        seconds = time.perf_counter() - start
        if metrics["num_images"] != len(images.dataset):
            raise ValueError(
                f"counted {metrics['num_images']} of {len(images.dataset)} images; the loader lost or repeated some"
            )
        cutoff = None
        try:
            found = norms.compute()
            cutoff = found["cutoff"]
            metrics |= {key: found[key] for key in ("outlier_share", "high_norm")}
        except ValueError as error:
            norm_words = f"; no high-norm flag: {error}"
    is_extra_token = args.global_token == "last" and argument.pool != "last"  # noqa: S105 (no password)
    words = [f"weights {trained.checkpoint_sha256}", pooling_words(trained.pooling, trained.pooling_source)]
    words.append(f"{seconds:.1f} s, {metrics['num_images'] / seconds:.1f} images/s, {describe_device(device)}")
    config = {
        "opts": args.opts,
        "global_token": args.global_token,
        "hit_rule": args.hit_rule,
        "max_box_area": args.max_box_area,
        "batch_size": args.batch_size,
        "left_out": images.left_out,
        "norm_cutoff": cutoff,
    }
    protocol = _protocol(args, f" K={last_pool.top_k} {last_pool.variant}" if is_extra_token else "")
    shown = {key: value for key, value in metrics.items() if key != "num_images"}
    found = Measurement(shown, metrics["num_images"], protocol, config)
    path = record_model(args, "point_in_box", argument, trained, found, seconds, device)
    return metrics, "; ".join([protocol, *words, f"written {path}{norm_words}"])


def print_metrics(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of rows, name -> metrics; a metric that no row has is no column."""
    keys = [key for key in _COLUMNS if any(key in row for row in rows.values())]
    cells = [["model", *(_COLUMNS[key] for key in keys)]]
    for name, row in rows.items():
        shown = {key: f"{row[key]:,}" if key == "num_images" else f"{row[key]:.2f}" for key in keys if key in row}
        if "high_norm" in row:
            shown["high_norm"] = "yes" if row["high_norm"] else "no"
        cells.append([name, *(shown.get(key, "-") for key in keys)])
    print_table(cells)


def closing_words(args: argparse.Namespace, images: BoxedImages) -> str:
    """The line below the table: images, protocol, and what does not count."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in images.left_out.items()) or "none"
    return f"{images.name}, {_protocol(args, '')}; percent; left out: {left_out}"


def _protocol(args: argparse.Namespace, selection: str) -> str:
    """Such as "box < 25 %, release rule, trained token"; `selection` says how an extra token is made."""
    area = "any box" if args.max_box_area is None else f"box < {100 * args.max_box_area:g} %"
    return f"{area}, {args.hit_rule} rule, {args.global_token}{selection} token"


def _has_classes(argument: ModelArgument, trained: TrainedModel, images: BoxedImages) -> bool:
    """Whether top-1 can be asked for: a CLIP answers with an embedding, and label sets differ in their classes."""
    is_clip = argument.spec.startswith("open_clip:")
    return images.num_classes is not None and trained.num_classes == images.num_classes and not is_clip
