"""Point-in-Box of one model or of many: images, pass, protocol in words, table and records (paper tables 1 and 3)."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import measured_models as measured
import torch
from layer_tokens import layer_tokens
from patch_norms import PatchNorms, token_norms
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import choose_global_token, dense_batches, dense_forward
from last_vit.evaluation import eval_transform, pooling_words, print_metrics
from last_vit.metrics import PointInBox, TopK
from last_vit.models import ModelArgument, TrainedModel
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool
from last_vit.preprocessing import Preprocessing
from last_vit.results import dataset_name

_COLUMNS = {
    "high_norm": "high norm",
    "outlier_share": "outliers %",
    "point_in_box": "Point-in-Box",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
    "point_in_box_max": "attainable",
    "acc1": "top-1",
    "num_images": "images",
}


class BoxedImages(NamedTuple):
    """Images that show one object each."""

    dataset: Dataset  # samples with "image", "box_xyxy" and "image_hw"; an `ImageNetDataset` has labels
    name: str  # what records call them
    skipped: dict[str, int]  # images that do not count, reason -> count
    annotated: Any  # the data set behind `dataset`, whose attribute `transform` makes "image"

    def for_model(self, _: argparse.Namespace, preprocessing: Preprocessing) -> "BoxedImages":
        """These images as a model takes them."""
        self.annotated.transform = eval_transform(preprocessing)
        return self


def run(args: argparse.Namespace) -> None:
    """The commands evaluate_patch_hit.py and point_in_box_table.py."""
    if args.imagenet_meta is not None and not args.imagenet_meta.is_file():
        raise FileNotFoundError(f"no file at --imagenet-meta {args.imagenet_meta}; it is not needed, leave it out")
    arguments = asked_models(args)
    measured.check_image_flags(args)
    images = open_folder(args) if args.imagenet_root is None else open_imagenet(args)
    shown = measure_on_boxes(args, arguments, images)
    if shown:  # else another process prints
        print_boxes({name: metrics for name, metrics, _ in shown})
        print("\n".join(f"{name}: {words}" for name, _, words in shown))
        print(closing_words(args, images))


def measure_on_boxes(
    args: argparse.Namespace, arguments: Sequence[ModelArgument], images: BoxedImages
) -> list[tuple[str, dict[str, float], str]]:
    """Name, metrics and words of every model, as `measure_models`."""
    args.dataset_name = images.name
    return measured.measure_models(args, "point_in_box", measure, arguments, images.for_model)


def asked_models(args: argparse.Namespace) -> list[ModelArgument]:
    """The models of --model and --checkpoint, and of --pool, --top-k and --variant, which go with one model.

    With --global-token last, --top-k and --variant shape that token and not the pooling, unless that is LaSt's as well.
    """
    arguments = measured.models_of(args)
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
    return BoxedImages(dataset, name, {**dataset.filtered, **dataset.skipped}, dataset)


def open_folder(args: argparse.Namespace) -> BoxedImages:
    """The single-object images of any folder with boxes; none is a ValueError."""
    images = measured.open_images(args, Preprocessing())
    kept, left_out = images.single_objects(args.max_box_area)
    if not kept:
        raise ValueError(
            f"no image of {args.images} has exactly one object, with a box below --max-box-area: {dict(left_out)}"
        )
    return BoxedImages(Subset(images, kept), measured.image_set_name(args), {**left_out, **images.skipped}, images)


def measure(subject: measured.Subject) -> tuple[tuple[str, dict[str, float], str], list[measured.Measurement]]:
    """One pass of a model, every image once over all processes: its name, its metrics, and what it is in words.

    Metrics are those of `PointInBox`, of `TopK` where the labels are those of the model's head, and "outlier_share"
    (percent) and "high_norm" (1 or 0) where a cut-off can be fitted.
    """
    args, argument, trained, images, device = subject
    last_pool, prep, norms, note = trained.selection(args.top_k, args.variant), trained.preprocessing, PatchNorms(), ""
    point_in_box = PointInBox(prep.crop, prep.resize, args.hit_rule)
    top_k = TopK() if is_numbered(images.dataset, trained) else None
    loader = subject.batches(dataset=images.dataset)
    count_patch_hits(trained.model, loader, device, point_in_box, top_k, args.global_token, last_pool, norms)
    metrics = {**(top_k.compute() if top_k else {}), **point_in_box.compute()}
    config = {key: getattr(args, key) for key in ("opts", "global_token", "hit_rule", "max_box_area", "batch_size")}
    try:
        found = norms.compute()
        metrics |= {key: found[key] for key in ("outlier_share", "high_norm")}
        config["norm_cutoff"] = found["cutoff"]
    except ValueError as error:
        note = f"; no high-norm flag: {error}"
    is_extra_token = args.global_token == "last" and argument.pool != "last"  # noqa: S105 (no password)
    protocol = _protocol(args, f" K={last_pool.top_k} {last_pool.variant}" if is_extra_token else "")
    pooling = pooling_words(trained.pooling, trained.pooling_source)
    kept = {key: value for key, value in metrics.items() if key != "num_images"}
    words = f"{protocol}; weights {trained.checkpoint_sha256}; {pooling}{note}"
    return (argument.name, metrics, words), [measured.Measurement(kept, metrics["num_images"], protocol, config)]


@torch.inference_mode()
def count_patch_hits(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    point_in_box: PointInBox,
    top_k: TopK | None = None,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
    patch_norms: PatchNorms | None = None,
) -> None:
    """Feed a model's best patches, and its logits and norms, to the metrics; each process over its share of the data.

    Batches have "box_xyxy" [B, 4] and "image_hw" [B, 2] (original pixels), and "label" [B] when there is a `top_k`.
    `last_pool` is for the token "last", K = 1 by default; `patch_norms` takes the norms before the final norm.
    """
    read = dense_forward if patch_norms is None else layer_tokens
    for found, batch in dense_batches(model, batches, device, read):
        output = found if patch_norms is None else found.output
        token = choose_global_token(output, global_token, last_pool or LaStPool(top_k=1))
        score = patch_score(output.patch_tokens, token)
        point_in_box.update(score, batch["box_xyxy"], batch["image_hw"], output.grid_hw)
        if top_k is not None:
            top_k.update(output.logits, batch["label"])
        if patch_norms is not None:
            patch_norms.update(token_norms(found.layers[-1]))


def print_boxes(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of rows, name -> metrics."""
    print_metrics(["model"], _COLUMNS, [([name], row) for name, row in rows.items()])


def closing_words(args: argparse.Namespace, images: BoxedImages) -> str:
    """The line below the table: images, protocol, and what does not count."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in images.skipped.items()) or "none"
    return f"{images.name}, {_protocol(args, '')}; percent; left out: {left_out}"


def is_numbered(images: Dataset, trained: TrainedModel) -> bool:
    """Whether the images have labels that are, or now are, those of the model's head; a CLIP has none."""
    if not isinstance(images, ImageNetDataset) or trained.num_classes is None:
        return False
    try:
        images.number_as(trained.num_classes)
    except ValueError:
        return False
    return True


def _protocol(args: argparse.Namespace, selection: str) -> str:
    """Such as "box < 25 %, release rule, trained token"; `selection` says how an extra token is made."""
    area = "any box" if args.max_box_area is None else f"box < {100 * args.max_box_area:g} %"
    return f"{area}, {args.hit_rule} rule, {args.global_token}{selection} token"
