"""Many poolings of one model for the price of one forward pass: what ablations over K and pooling need.

The encoder does not know what its tokens are pooled with. So several pools stand where a host has one, and hand on
their tokens one after the other as a larger batch: whatever the host does behind its pooling (norm, projection, head)
treats the rows alike. Each read-out is what the host would give with that pool attached alone. `run` is top_k_table.py.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from class_names import ClassNames, find_class_names
from torch import Tensor, nn
from zero_shot_classification import images_name, open_class_images, open_clip_loader, write_model_record
from zero_shot_models import as_weights, encode_names, load_clip_argument, read_once, zero_shot_scores

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.adapters.base import class_names
from last_vit.boxes import is_small_box
from last_vit.clip_models import LoadedClip
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_batches, dense_forward, pooling_of
from last_vit.evaluation import print_metrics
from last_vit.metrics import PointInBox, TopK
from last_vit.models import ModelArgument, naming, parse_model_arguments
from last_vit.patch_scores import patch_score
from last_vit.runtime import is_main_process, process_group
from last_vit.token_pool import TokenPool

# How the hosts call their own read-outs: open_clip's `pool_type`, timm's `global_pool`.
_OWN_READ_OUTS = {"tok": "cls", "token": "cls", "avg": "mean"}


class ReadOuts(nn.Module):
    """Several pools in the place of one."""

    kind = "several"

    def __init__(self, pools: Sequence[TokenPool]) -> None:
        super().__init__()
        self.pools = nn.ModuleList(pools)

    def forward(self, *tokens: Any) -> Tensor:
        """[B, P + N, D] -> [R * B, D], pool by pool; takes what `TokenPool` takes."""
        return torch.cat([pool(*tokens) for pool in self.pools])


def attach_read_outs(model: nn.Module, pools: Sequence[TokenPool]) -> nn.Module:
    """Pool with R pools, in place of a host's pooling; for `dense_read_outs` alone, and for good. Returns `model`."""
    adapter, host = find_adapter(model), unwrap_host(model)
    for pool in pools:
        adapter.attach(host, pool)  # says which of them the host cannot serve
    adapter.attach(host, ReadOuts(pools))
    return model


def dense_read_outs(model: nn.Module, images: Tensor) -> list[DenseOutput]:
    """One pass over [B, 3, H, W] images, read once per pool: outputs that share all but `global_token` and `logits`."""
    output = dense_forward(model, images)
    tokens, logits = output.global_token.split(len(images)), output.logits.split(len(images))
    return [output._replace(global_token=own, logits=row) for own, row in zip(tokens, logits, strict=True)]


def own_pool(model: nn.Module) -> TokenPool:
    """The pool that a model reads with now, also where that is the own read-out of open_clip's or timm's ViT."""
    pooling = pooling_of(model)
    if pooling["pool"] != "host":
        return TokenPool(pooling["pool"], pooling["top_k"], pooling["sigma"], pooling["variant"] or "release")
    host = unwrap_host(model)
    tower = getattr(host, "visual", host)
    tower = getattr(tower, "trunk", tower)
    own = getattr(tower, "pool_type", getattr(tower, "global_pool", None))
    if own not in _OWN_READ_OUTS:
        raise ValueError(
            f"{class_names(tower)[0]} reads its tokens in its own way ({own!r}), not by 'tok', 'token' or 'avg'"
        )
    return TokenPool(_OWN_READ_OUTS[own])


def list_pools(model: nn.Module, kinds: Sequence[str], top_ks: Sequence[int | float]) -> list[TokenPool]:
    """The model's own pool, and then those asked for that are another one; `top_ks` are of "last".

    Variant and sigma of the model's LaSt, if it has one, are those of all.
    """
    own = own_pool(model)
    pools = {(own.kind, repr(own.top_k)): own}  # 1 is one patch and 1.0 is all of them
    for kind in kinds:
        for top_k in top_ks if kind == "last" else [None]:
            pools.setdefault((kind, repr(top_k)), TokenPool(kind, top_k, own.sigma, own.variant or "release"))
    return list(pools.values())


def read_images(model: nn.Module, images: Tensor) -> list[DenseOutput]:
    """`dense_read_outs` in the dtype of the model."""
    return dense_read_outs(model, as_weights(model, images))


_COLUMNS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "point_in_box": "PiB",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
    "point_in_box_max": "attainable",
}


def run(args: argparse.Namespace) -> None:
    """All models of top_k_table.py; ValueError and OSError for whatever the user can mend."""
    arguments = parse_model_arguments(args.model)
    if not 0 < args.max_box_area <= 1:
        raise ValueError(f"--max-box-area is a share of the image in (0, 1], got {args.max_box_area}")
    if args.point_in_box and args.imagenet_root is None:
        raise ValueError("--point-in-box needs ImageNet's boxes: give --imagenet-root in place of --images")
    with process_group(args.device) as device:
        images = open_class_images(args, boxes=args.point_in_box)
        names = find_class_names(args.class_names, images.classes)
        rows = []
        for argument in arguments:
            rows += measure_model(argument, args, images, names, device)
        if not is_main_process():
            return
        print_metrics(["model", "read-out"], _COLUMNS, [(names, metrics) for *names, metrics in rows])
        boxes = f", {rows[0][2]['num_boxes']} with one small box" if args.point_in_box else ""
        print(f"{images_name(args)}: {len(images)} images{boxes}, {len(images.classes)} classes; percent")


def measure_model(
    argument: ModelArgument,
    args: argparse.Namespace,
    images: ImageNetDataset,
    names: ClassNames,
    device: torch.device,
) -> list[tuple[str, str, dict[str, float]]]:
    """All read-outs of one model in one pass over the images, and their records: model, read-out, metrics of each."""
    clip = load_clip_argument(argument, args.precision, device)
    with naming(argument):
        pools = list_pools(clip.model, args.pool, args.top_k)
        attach_read_outs(clip.model, pools)
        read_once(clip, device, read_images)
    found, seconds = measure_read_outs(argument, args, images, names, clip, len(pools), device)
    rows = []
    for number, (pool, metrics) in enumerate(zip(pools, found, strict=True)):
        words = pool.kind if pool.top_k is None else f"{pool.kind} K={pool.top_k}"
        num_images = metrics.pop("num_images")
        if is_main_process():
            config = {
                "num_classes": len(images.classes),
                "read_out": {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant},
                "read_outs_of_the_pass": len(pools),
                "max_box_area": args.max_box_area if args.point_in_box else None,
            }
            label = f"{argument.name}, read with {words}" if number else argument.name
            counts = {"n_images": num_images, "seconds": seconds, "device": device}
            write_model_record(args, argument, clip, metrics, label, config, **counts)
        rows.append((argument.name, words if number else f"as trained: {words}", metrics))
    return rows


def measure_read_outs(
    argument: ModelArgument,
    args: argparse.Namespace,
    images: ImageNetDataset,
    names: ClassNames,
    clip: LoadedClip,
    num_pools: int,
    device: torch.device,
) -> tuple[list[dict[str, float]], float]:
    """Metrics of each of a CLIP's `num_pools` read-outs over the images of all processes, and the seconds."""
    text, class_of_name = encode_names(clip, names, args, device)
    accuracies = [TopK((1, 5)) for _ in range(num_pools)]
    hits = [PointInBox(clip.preprocessing.crop, clip.preprocessing.resize) for _ in range(num_pools)]
    loader = open_clip_loader(args, images, clip, argument.name)
    start = time.perf_counter()
    for outputs, batch in dense_batches(clip.model, loader, device, read_images):
        for output, accuracy, hit in zip(outputs, accuracies, hits, strict=True):
            accuracy.update(zero_shot_scores(output.logits, text, class_of_name), batch["label"])
            if args.point_in_box:
                score = patch_score(output.patch_tokens, output.global_token)
                is_small = is_small_box(batch["box_xyxy"], batch["image_hw"], args.max_box_area)
                boxes = batch["box_xyxy"].masked_fill(~is_small[:, None], float("nan"))
                hit.update(score, boxes, batch["image_hw"], output.grid_hw)
    found = [accuracy.compute() for accuracy in accuracies]
    if args.point_in_box:
        for metrics, hit in zip(found, hits, strict=True):
            boxed = hit.compute()
            metrics |= {"num_boxes": boxed.pop("num_images"), **boxed}
    return found, time.perf_counter() - start
