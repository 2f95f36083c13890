"""Point-in-Box of one model or of many: images, pass, protocol in words, table and records (paper tables 1 and 3)."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace

import measured_models as measured
import torch
from layer_tokens import layer_tokens
from patch_norms import PatchNorms, token_norms
from torch import Tensor, nn
from torch.utils.data import Dataset

from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import choose_global_token, dense_batches
from last_vit.evaluation import pooling_words, print_metrics
from last_vit.metrics import PointInBox, TopK
from last_vit.models import ModelArgument, TrainedModel
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool

TABLE = "point_in_box"
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


def run(args: argparse.Namespace) -> None:
    """The commands evaluate_patch_hit.py and point_in_box_table.py."""
    if args.imagenet_meta is not None and not args.imagenet_meta.is_file():
        raise FileNotFoundError(f"no file at --imagenet-meta {args.imagenet_meta}; it is not needed, leave it out")
    arguments = asked_models(args)
    measured.check_image_flags(args)
    if args.imagenet_root is not None:
        images = measured.open_boxes(args, args.max_box_area)
    else:
        images = measured.open_images(args)
        images.keep_single_objects(args.max_box_area)
    shown = measured.measure_models(args, TABLE, measure, images, arguments)
    if shown:  # else another process prints
        print_boxes({name: metrics for name, metrics, _ in shown})
        print("\n".join(f"{name}: {words}" for name, _, words in shown))
        print(closing_words(args, images))


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


def measure(subject: measured.Subject) -> tuple[tuple[str, dict[str, float], str], list[measured.Measurement]]:
    """One pass of a model, every image once over all processes: its name, its metrics, and what it is in words.

    Metrics are those of `PointInBox`, of `TopK` where the labels are those of the model's head, and "outlier_share"
    (percent) and "high_norm" (1 or 0) where a cut-off can be fitted.
    """
    args, argument, trained, images, device = subject
    last_pool, prep, norms, note = trained.selection(args.top_k, args.variant), trained.preprocessing, PatchNorms(), ""
    point_in_box = PointInBox(prep.crop, prep.resize, args.hit_rule)
    top_k = TopK() if is_numbered(images, trained) else None
    count_patch_hits(trained.model, subject.batches(), device, point_in_box, norms, top_k, args.global_token, last_pool)
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
    norms: PatchNorms,
    top_k: TopK | None = None,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
) -> None:
    """Feed a model's best patches, and its norms and logits, to the metrics; each process over its share of the data.

    Batches have "box_xyxy" [B, 4] and "image_hw" [B, 2] (original pixels), and "label" [B] when there is a `top_k`.
    `last_pool` is for the token "last", K = 1 by default; the norms are those before the final norm.
    """
    for tokens, batch in dense_batches(model, batches, device, layer_tokens):
        output = tokens.output
        token = choose_global_token(output, global_token, last_pool or LaStPool(top_k=1))
        score = patch_score(output.patch_tokens, token)
        point_in_box.update(score, batch["box_xyxy"], batch["image_hw"], output.grid_hw)
        if top_k is not None:
            top_k.update(output.logits, batch["label"])
        norms.update(token_norms(tokens.layers[-1]))


def print_boxes(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of rows, name -> metrics."""
    print_metrics(["model"], _COLUMNS, [([name], row) for name, row in rows.items()])


def closing_words(args: argparse.Namespace, images: measured.Images) -> str:
    """The line below the table: images, protocol, and what does not count."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in measured.left_out(images).items()) or "none"
    return f"{measured.image_set_name(args)}, {_protocol(args, '')}; percent; left out: {left_out}"


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
