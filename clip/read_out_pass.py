"""One pass of a CLIP over labelled images, read with several pools: accuracy and Point-in-Box of each."""

import argparse
import time
from collections.abc import Mapping, Sequence

import torch
from read_outs import dense_read_outs, own_pool
from torch import Tensor, nn
from zero_shot_cli import as_weights, encode_classes, open_loader

from last_vit.adapters import DenseOutput
from last_vit.boxes import is_small_box
from last_vit.clip_models import LoadedClip
from last_vit.clip_text import zero_shot_scores
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_batches
from last_vit.metrics import PointInBox, TopK
from last_vit.models import ModelArgument
from last_vit.patch_scores import patch_score
from last_vit.token_pool import TokenPool


def list_pools(model: nn.Module, kinds: Sequence[str], top_ks: Sequence[int | float]) -> list[TokenPool]:
    """The model's own pool, and then those asked for that are another one.

    Args:
        model: With its pooling attached; variant and sigma of its LaSt, if it has one, are those of all.
        kinds: Some of `POOLS`.
        top_ks: For "last".

    Raises:
        ValueError: As `own_pool` and `TokenPool`.
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


def measure_read_outs(
    argument: ModelArgument,
    args: argparse.Namespace,
    images: ImageNetDataset,
    clip: LoadedClip,
    num_pools: int,
    device: torch.device,
) -> tuple[list[dict[str, float]], float]:
    """The pass over the images.

    Args:
        argument: Names the progress bar.
        args: Parsed.
        images: To classify.
        clip: With `num_pools` read-outs attached.
        num_pools: R.
        device: Where to compute.

    Returns:
        Metrics of each read-out over the images of all processes, and the seconds of the pass.

    Raises:
        ValueError, FileNotFoundError: As `encode_classes`; embeddings or scores that are NaN.
    """
    text, class_of_name, _ = encode_classes(clip, images, args)
    accuracies = [TopK((1, 5)) for _ in range(num_pools)]
    hits = [PointInBox(clip.preprocessing.crop, clip.preprocessing.resize) for _ in range(num_pools)]
    loader = open_loader(args, images, clip, argument.name)
    start = time.perf_counter()
    for outputs, batch in dense_batches(clip.model, loader, device, read_images):
        for output, accuracy, hit in zip(outputs, accuracies, hits, strict=True):
            accuracy.update(zero_shot_scores(output.logits, text, class_of_name), batch["label"])
            if args.point_in_box:
                score = patch_score(output.patch_tokens, output.global_token)
                hit.update(score, small_boxes(batch, args.max_box_area), batch["image_hw"], output.grid_hw)
    found = [accuracy.compute() for accuracy in accuracies]
    if args.point_in_box:
        for metrics, hit in zip(found, hits, strict=True):
            boxed = hit.compute()
            metrics |= {"num_boxes": boxed.pop("num_images"), **boxed}
    return found, time.perf_counter() - start


def small_boxes(batch: Mapping[str, Tensor], max_box_area: float) -> Tensor:
    """[B, 4] boxes of a batch, NaN where there is not exactly one or where it takes `max_box_area` of its image."""
    boxes = batch["box_xyxy"]
    is_small = is_small_box(boxes, batch["image_hw"], max_box_area)
    return boxes.masked_fill(~is_small[:, None], float("nan"))
