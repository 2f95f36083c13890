r"""k-NN classification with a frozen backbone (DINO's eval_knn.py): no training, one pass over ImageNet.

    python dino/eval_knn.py --pretrained_weights output/dino/checkpoint.pth --data_path /path/to/imagenet
    torchrun --nproc-per-node 8 dino/eval_knn.py --arch vit_base --pretrained_weights ... --data_path ... \
        --dump_features features
    python dino/eval_knn.py ... --load_features features --nb_knn 20 --temperature 0.1     # without the pass

Images with the shorter side at 256, centre crop 224, bicubic; the teacher's global token (the class token, or LaSt's
for a backbone trained with it), of length 1; the --nb_knn nearest training images vote, each with
exp(cosine / temperature). Top-1 and top-5 on val for every k. The search runs in blocks that fit a small GPU (see
knn_search.py), on a CPU too. Cached features of other weights, images or preprocessing are refused.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_options import boolean
from eval_options import add_backbone_flags, add_data_flags, add_result_flags

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import TrainedModel


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("eval_knn.py", __doc__)
    add_backbone_flags(parser)
    add_data_flags(parser, num_workers=10)
    add = parser.add_argument_group("k-NN").add_argument
    add("--nb_knn", type=positive, nargs="+", default=[10, 20, 100, 200], help="values of k; default 10 20 100 200")
    add("--temperature", type=float, default=0.07, help="of the votes; default 0.07")
    add("--use_cuda", type=boolean, default=True, help="search on the GPU, where there is one; default true")
    add("--dump_features", type=Path, metavar="DIR", help="write the features here")
    add("--load_features", type=Path, metavar="DIR", help="read them from here in place of a pass over the images")
    add_result_flags(parser, "knn")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    import torch
    from frozen_features import eval_transform, gather_rows, images_name, load_backbone, open_splits
    from knn_search import knn_accuracy

    from last_vit.data.loaders import process_share
    from last_vit.runtime import describe_device, is_main_process, process_group, rank

    if not args.temperature > 0:
        raise ValueError(f"--temperature must be positive, got {args.temperature}")
    if args.dump_features is not None and args.load_features is not None:
        raise ValueError("--dump_features writes what --load_features reads: give one of them")
    ks = sorted(set(args.nb_knn))
    with process_group(args.device) as device:
        trained = load_backbone(args, args.image_size, args.resize)
        transform = eval_transform(trained.preprocessing)
        train, val = open_splits(args, transform, transform)
        if ks[-1] > len(train):
            raise ValueError(f"--nb_knn {ks[-1]} is more than the {len(train)} training images")
        start = time.perf_counter()
        bank = split_features(args, trained, "train", train, device)
        queries = split_features(args, trained, "val", val, device)
        where = device if args.use_cuda else torch.device("cpu")
        share = process_share(len(train), rank())
        metrics = knn_accuracy(
            gather_rows(queries, len(val)).to(where),
            torch.from_numpy(val.labels).to(where),
            bank.to(where),
            torch.from_numpy(train.labels[share.start : share.stop]).to(where),
            len(train.classes),
            ks,
            args.temperature,
        )
        seconds = time.perf_counter() - start
        if not is_main_process():
            return
        known = ", ".join(f"{key}={value}" for key, value in trained.pooling.items() if value is not None)
        print(f"{args.arch}, pooling {known} ({trained.pooling_source})")
        print(
            f"{images_name(args, trained.preprocessing)}: {len(val)} images, {len(train)} to compare with, "
            f"{len(train.classes)} classes; {seconds:.1f} s, {describe_device(device)}"
        )
        print(
            "\n".join(f"{k:5}-NN  top-1 {metrics[f'knn_{k}']:6.2f}  top-5 {metrics[f'knn_{k}_top5']:6.2f}" for k in ks)
        )
        print(f"written {_write(args, trained, metrics, train, val, seconds, device)}")


def split_features(
    args: argparse.Namespace, trained: "TrainedModel", split: str, images: "ImageNetDataset", device: "torch.device"
) -> "Tensor":
    """This process's share of a split's features, from the cache or from a pass over the images.

    Returns:
        float32 [share, D] of length 1, on the CPU.

    Raises:
        ValueError, FileNotFoundError: As `load_features` and `extract_features`.
    """
    from feature_cache import dump_features, load_features
    from frozen_features import describe_backbone, extract_features, gather_rows, labels_digest, pooled_token

    from last_vit.runtime import is_main_process

    of = {**describe_backbone(args, trained), "num_images": len(images), "files_and_labels": labels_digest(images)}
    if args.load_features is not None:
        return load_features(args.load_features, split, of, len(images))
    trained.model.to(device)
    features = extract_features(trained, images, pooled_token, args, device)
    if args.dump_features is not None:
        whole = gather_rows(features, len(images), everywhere=False)
        if is_main_process():
            print(f"written {dump_features(args.dump_features, split, of, whole)}")
    return features


def _write(
    args: argparse.Namespace,
    trained: "TrainedModel",
    metrics: dict[str, float],
    train: "ImageNetDataset",
    val: "ImageNetDataset",
    seconds: float,
    device: "torch.device",
) -> Path:
    """The results record."""
    from frozen_features import describe_backbone, images_name, result_stem

    from last_vit.results import result_name, write_result

    return write_result(
        result_name(result_stem(args, "knn")),
        metrics,
        n_images=len(val),
        dataset=images_name(args, trained.preprocessing),
        config={
            **describe_backbone(args, trained),
            "pooling_source": trained.pooling_source,
            "nb_knn": sorted(set(args.nb_knn)),
            "temperature": args.temperature,
            "num_bank_images": len(train),
            "num_classes": len(train.classes),
            "cached_features": args.load_features is not None,
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=None if args.row is None else "knn",
        row=args.row,
    )


if __name__ == "__main__":
    main()
