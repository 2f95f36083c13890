r"""Linear classification on frozen features (DINO's eval_linear.py).

    torchrun --nproc-per-node 8 dino/eval_linear.py --pretrained_weights output/dino/checkpoint.pth \
        --data_path /path/to/imagenet --output_dir output/dino_linear
    torchrun ... dino/eval_linear.py --arch vit_base --n_last_blocks 1 --avgpool_patchtokens true ...
    python dino/eval_linear.py ... --output_dir output/dino_linear --evaluate

DINO's protocol: the class tokens of the last 4 blocks after the final norm, joined (ViT-S), or that of the last beside
the mean of its patches (ViT-B); a linear layer, SGD with momentum 0.9, learning rate 0.001 * images per step / 256,
falling to 0 along a cosine over 100 epochs; random resized crops and flips to train, a centre crop of 224 from 256,
bicubic, to validate. For a backbone trained with LaSt the LaSt token of each block's patches, after the final norm,
stands in the class token's place.

Training features change with every crop, so the backbone runs in every epoch; those of val are computed once. A run is
continued from `checkpoint.pth.tar` in its --output_dir. DINO publishes the best validation accuracy of all epochs;
results hold the last epoch's, and the best beside it.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_options import boolean
from eval_options import add_backbone_flags, add_data_flags, add_result_flags

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from frozen_features import Reader
    from linear_probe import LinearProbe

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import TrainedModel


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("eval_linear.py", __doc__)
    add_backbone_flags(parser)
    add_data_flags(parser, num_workers=10)
    add = parser.add_argument_group("classifier").add_argument
    add("--n_last_blocks", type=positive, default=4, help="of a ViT: 4 for ViT-S, 1 for ViT-B; default 4")
    add("--avgpool_patchtokens", type=boolean, default=False, help="also the mean of the patches: true for ViT-B")
    add("--epochs", type=positive, default=100, help="default 100")
    add("--lr", type=float, default=0.001, help="for 256 images per step, scaled linearly; default 0.001")
    add("--val_freq", type=positive, default=1, help="validate every n-th epoch, and after the last; default 1")
    add("--num_labels", type=positive, default=1000, help="classes of the data; default 1000")
    add("--output_dir", type=Path, default=Path("."), help="checkpoint and log.txt; default .")
    add("--evaluate", action="store_true", help="only validate the checkpoint in --output_dir")
    add_result_flags(parser, "linear")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    import torch
    from frozen_features import (
        describe_backbone,
        eval_transform,
        extract_features,
        images_name,
        layer_reader,
        load_backbone,
        open_splits,
    )
    from linear_probe import LinearProbe

    from last_vit.data.loaders import process_share
    from last_vit.data.transforms import train_transform
    from last_vit.runtime import is_main_process, process_group, rank

    if not args.lr > 0:
        raise ValueError(f"--lr must be positive, got {args.lr}")
    with process_group(args.device) as device:
        trained = load_backbone(args, args.image_size, args.resize)
        prep = trained.preprocessing
        train, val = open_splits(args, train_transform(prep.crop, prep.mean, prep.std), eval_transform(prep))
        if len(train.classes) != args.num_labels:
            raise ValueError(
                f"--num_labels is {args.num_labels}, but {train.folder} has {len(train.classes)} classes: give "
                f"--num_labels {len(train.classes)}, or the right folder"
            )
        trained.model.to(device).requires_grad_(False)
        read = layer_reader(trained.model, args.n_last_blocks, args.avgpool_patchtokens)
        features = {
            **describe_backbone(args, trained),
            "n_last_blocks": args.n_last_blocks,
            "avgpool_patchtokens": args.avgpool_patchtokens,
        }
        start = time.perf_counter()
        share = process_share(len(val), rank())
        val_features = extract_features(trained, val, read, args, device)
        val_labels = torch.from_numpy(val.labels[share.start : share.stop])
        probe = LinearProbe(val_features.shape[1], args.num_labels).to(device)
        metrics, training = run_probe(args, trained, read, probe, train, (val_features, val_labels), features)
        seconds = time.perf_counter() - start
        if is_main_process():
            print(
                f"{args.arch}, {images_name(args, prep)}: top-1 {metrics['acc1']:.2f}, top-5 {metrics['acc5']:.2f}; "
                f"best top-1 of the epochs validated {metrics['best_acc1']:.2f}"
            )
            print(f"written {_write(args, trained, metrics, features, training, len(val), seconds, device)}")


def run_probe(
    args: argparse.Namespace,
    trained: "TrainedModel",
    read: "Reader",
    probe: "LinearProbe",
    train: "ImageNetDataset",
    val: "tuple[torch.Tensor, torch.Tensor]",
    features: dict[str, Any],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Train the classifier from where its checkpoint stands, or with `args.evaluate` only validate it.

    Returns:
        "acc1" and "acc5" after the last epoch, and "best_acc1", in percent; and how the classifier was trained:
        "epochs", "lr" and "batch_size", None where nobody knows.

    Raises:
        ValueError: A checkpoint of something else, or one whose training these flags would go on with differently; an
            unreadable image.
        FileNotFoundError: `args.evaluate` without a checkpoint.
        FloatingPointError: As `train_epoch`.
    """
    from linear_probe import CHECKPOINT, build_optimizer, learning_rate, load_probe, save_probe, train_epoch, validate

    from last_vit.data.loaders import build_train_loader
    from last_vit.runtime import get_logger, is_main_process, world_size

    logger = get_logger("linear")
    optimizer = build_optimizer(probe)
    first, best, history = 0, 0.0, []
    training = {"epochs": args.epochs, "lr": args.lr, "batch_size": args.batch_size_per_gpu * world_size()}
    if args.evaluate or (args.output_dir / CHECKPOINT).exists():
        first, best, history, trained_with = load_probe(args.output_dir, probe, optimizer, features)
        if args.evaluate or first >= args.epochs:
            found = validate(probe, *val)
            known = {name: trained_with.get(name) for name in training} | {"epochs": first or None}
            return {**found, "best_acc1": max(best, found["acc1"])}, known
        _check_same_training(args.output_dir / CHECKPOINT, trained_with, training)
    elif is_main_process():
        args.output_dir.mkdir(parents=True, exist_ok=True)
    num_steps = math.ceil(len(train) / (args.batch_size_per_gpu * world_size()))
    batches = iter(
        build_train_loader(train, args.batch_size_per_gpu, args.num_workers, start_iteration=first * num_steps)
    )
    found = {}
    for epoch in range(first, args.epochs):
        lr = learning_rate(args.lr, args.batch_size_per_gpu, epoch, args.epochs)
        loss = train_epoch(trained.model, read, probe, optimizer, batches, num_steps, lr)
        line = {"epoch": epoch, "train_lr": lr, "train_loss": loss}
        if (epoch + 1) % args.val_freq == 0 or epoch + 1 == args.epochs:
            found = validate(probe, *val)
            best = max(best, found["acc1"])
            line |= {f"test_{name}": value for name, value in found.items()}
        history.append(line)
        logger.info("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
        if is_main_process():
            save_probe(args.output_dir, probe, optimizer, epoch, best, features, training, history)
    return {**found, "best_acc1": best}, training


def _check_same_training(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    different = [f"{name} {there[name]} there, {here[name]} here" for name in there if there[name] != here[name]]
    if different:
        raise ValueError(
            f"{path} was trained otherwise: {'; '.join(different)}. Go on with its own flags (batch_size is that of "
            f"all processes), or give another --output_dir"
        )


def _write(
    args: argparse.Namespace,
    trained: "TrainedModel",
    metrics: dict[str, float],
    features: dict[str, Any],
    training: dict[str, Any],
    num_images: int,
    seconds: float,
    device: "torch.device",
) -> Path:
    """The results record."""
    from frozen_features import images_name, result_stem

    from last_vit.results import result_name, write_result

    return write_result(
        result_name(result_stem(args, "linear")),
        metrics,
        n_images=num_images,
        dataset=images_name(args, trained.preprocessing),
        config={
            **features,
            "pooling_source": trained.pooling_source,
            **training,
            "num_labels": args.num_labels,
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=None if args.row is None else "linear",
        row=args.row,
    )


if __name__ == "__main__":
    main()
