"""Weighted k-NN classification as in DINO, in blocks, over any number of processes.

Memory: the bank, the queries and a block of similarities: below 3 GiB for ImageNet's 1,281,167 x 384 float32 features.
Processes share the queries; each holds the bank, and for a moment once more what it puts together of all their shares.

Letters: Q queries, M features in the bank, D channels, C classes.
"""

import argparse
import time
from collections.abc import Sequence

import frozen_features as frozen
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import process_share
from last_vit.evaluation import eval_transform, pooling_words, print_table
from last_vit.metrics.summed_counters import SummedCounters
from last_vit.models import TrainedModel
from last_vit.runtime import describe_device, is_main_process, process_group, rank

BLOCK_BYTES = 2**28
_QUERIES = 1024
_TOP = 5


def run(args: argparse.Namespace) -> None:
    """Features of both splits, from the cache or a pass over the images, then the search for every k."""
    if args.dump_features is not None and args.load_features is not None:
        raise ValueError("--dump_features writes what --load_features reads: give one of them")
    ks = sorted(set(args.nb_knn))
    with process_group(args.device, args.dist_url) as device:
        trained = frozen.load_backbone(args, args.image_size, args.resize)
        transform = eval_transform(trained.preprocessing)
        train, val = frozen.open_splits(args, transform, transform)
        if ks[-1] > len(train):
            raise ValueError(f"--nb_knn {ks[-1]} is more than the {len(train)} training images")
        start = time.perf_counter()
        bank = split_features(args, trained, "train", train, device)
        queries = split_features(args, trained, "val", val, device)
        where = device if args.use_cuda else torch.device("cpu")
        share = process_share(len(val), rank())
        metrics = knn_accuracy(
            queries[share.start : share.stop].to(where),
            torch.from_numpy(val.labels[share.start : share.stop]).to(where),
            bank.to(where),
            torch.from_numpy(train.labels).to(where),
            len(train.classes),
            ks,
            args.temperature,
        )
        seconds = time.perf_counter() - start
        if not is_main_process():
            return
        print(f"{args.arch}, {pooling_words(trained.pooling, trained.pooling_source)}")
        print(
            f"{frozen.images_name(args, trained)}: {len(val)} images, {len(train)} to compare with, "
            f"{len(train.classes)} classes; {seconds:.1f} s, {describe_device(device)}"
        )
        print_table([["k", "top-1", "top-5"], *([str(k), *(f"{metrics[n]:.2f}" for n in _names(k))] for k in ks)])
        config = {
            "nb_knn": ks,
            "temperature": args.temperature,
            "num_bank_images": len(train),
            "num_classes": len(train.classes),
            "cached_features": args.load_features is not None,
        }
        frozen.write_backbone_record(args, trained, "knn", metrics, config, len(val), seconds, device)


def split_features(
    args: argparse.Namespace, trained: TrainedModel, split: str, images: ImageNetDataset, device: torch.device
) -> Tensor:
    """The features of a split, cached or computed by all processes: float32 [N, D] of length 1, on the CPU."""
    of = frozen.describe_backbone(args, trained)
    of |= {"num_images": len(images), "files_and_labels": frozen.labels_digest(images)}
    if args.load_features is not None:
        return frozen.load_features(args.load_features, split, of, len(images))
    trained.model.to(device)
    features = frozen.gather_rows(frozen.extract_features(trained, images, _unit_token, args, device), len(images))
    if args.dump_features is not None and is_main_process():
        frozen.dump_features(args.dump_features, split, of, features)
    return features


def _unit_token(model: nn.Module, images: Tensor) -> Tensor:
    """The global token after the final norm, float32 [B, D] of length 1."""
    return F.normalize(model(images).float(), dim=1)


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, float]:
    """Accuracy of the classes that the k most similar features vote for, each with exp(similarity / temperature).

    Queries [Q, D] of length 1 and their labels, int64 [Q], are this process's share; the bank [M, D], of length 1, and
    its labels [M] are the same in every process. A query counts for top-5 when its class is among the five with most
    votes, of those that got any (DINO's code may also count one without votes). "knn_<k>" and "knn_<k>_top5" are in
    percent, over the queries of all processes.
    """
    counters = SummedCounters("queries", *(name for k in ks for name in _names(k)))
    for part, labels in zip(queries.split(_QUERIES), query_labels.split(_QUERIES), strict=True):
        similarity, near_labels = find_nearest(part, bank, bank_labels, max(ks), block_bytes)
        hits = {"queries": torch.tensor(len(part), device=part.device)}
        for k in ks:
            votes = count_votes(similarity[:, :k], near_labels[:, :k], temperature, num_classes)
            top = votes.topk(min(_TOP, num_classes), dim=1)
            is_hit = (top.indices == labels[:, None]) & (top.values > 0)
            hits |= dict(zip(_names(k), (is_hit[:, 0].sum(), is_hit.sum()), strict=True))
        counters.add(**hits)
    totals = counters.totals()
    return {name: 100.0 * totals[name] / totals["queries"] for k in ks for name in _names(k)}


def find_nearest(
    queries: Tensor, bank: Tensor, labels: Tensor, k: int, block_bytes: int = BLOCK_BYTES
) -> tuple[Tensor, Tensor]:
    """The k <= M features with the largest dot products with each query, of equal ones any: products and labels [Q, k].

    The bank is searched in parts that give `block_bytes` of similarities at a time, at least 4 * Q.
    """
    width = block_bytes // (4 * max(1, len(queries)))
    similarity = queries.new_empty((len(queries), 0))
    index = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), width):
        best, where = _nearest_in(queries, bank[start : start + width], k)
        similarity, index = torch.cat((similarity, best), dim=1), torch.cat((index, where + start), dim=1)
        similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
        index = index.gather(1, order)
    return similarity, labels[index]


def count_votes(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Votes of neighbours [Q, k], nearest first, up to a factor per query: float64 [Q, C]; 0 for classes without."""
    similarity = similarity.double()
    # relative to the nearest, so that no temperature overflows; and a vote is never nothing
    weights = ((similarity - similarity[:, :1]) / temperature).exp().clamp_min(torch.finfo(torch.float64).tiny)
    votes = weights.new_zeros((len(weights), num_classes))
    return votes.scatter_add_(1, labels, weights)


def _nearest_in(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarity and place of the best in one block, which is freed on return, before the next is made."""
    return (queries @ block.T).topk(min(k, len(block)), dim=1)


def _names(k: int) -> tuple[str, str]:
    return f"knn_{k}", f"knn_{k}_top5"
