r"""Accuracy when an image's best, worst or random patches are blanked out (paper Sec. 4, figure 2b).

    python visualization/probe_masking.py --imagenet-root /path/to/imagenet --num-images 5000 \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth

Patches are ranked by the model's own patch scores of the whole image, without a label; p percent of them are set to the
mean colour in the model's input, and the image is classified again. The random curve is the control: its masks belong
to the image and --seed, whatever the batch. If losing the best-scoring patches costs less than losing the worst-scoring
ones, the global token resembles patches that the class does not depend on. One forward pass for the scores and three
for each of --shares.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import (
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    eval_transform,
    open_loader,
    print_table,
    write_model_result,
)
from token_cli import add_token_flag, check_model, naming, token_words

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from score_figures import MaskingView

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import ModelArgument


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("probe_masking.py", __doc__)
    add_model_flags(parser)
    add = parser.add_argument
    add("--imagenet-root", type=Path, required=True, help="folder that holds val/, or val/ itself")
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable")
    add("--dataset-name", help="data set in the results; default: the name of --imagenet-root")
    add("--num-images", type=positive, help="look at so many images, spread evenly over the classes; default: all")
    add("--seed", type=_seed, default=0, help="of the random masks, and of --num-images; default 0")
    add(
        "--shares",
        type=int,
        nargs="+",
        default=list(range(10, 100, 10)),
        metavar="P",
        help="masked percents of the patches, in [1, 99]; default 10 20 ... 90. 0 is always there",
    )
    add_token_flag(parser)
    add_loading_flags(parser)
    add_output_flags(parser, "results/masking_probe.png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from figure_style import save_figure
    from patch_probes import MaskedAccuracy
    from score_figures import draw_masking

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import parse_model_arguments
    from last_vit.results import dataset_name
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    MaskedAccuracy(args.shares)  # wrong ones stop here
    dataset = ImageNetDataset(args.imagenet_root, "val", skip_broken=args.skip_broken)
    chosen = spread_over_classes(dataset.labels, args.num_images or len(dataset), args.seed)
    args.dataset_name = f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"
    with process_group(args.device) as device:
        for argument in arguments:
            check_model(argument, args, device)
            check_classifier(argument, args, len(dataset.classes))
        views = [measure(argument, args, dataset, chosen, device) for argument in arguments]
        if not is_main_process():
            return
        print_table(_table(views))
        print(f"top-1 in percent, {len(chosen):,} of {len(dataset):,} images of {args.dataset_name}")
        save_figure(draw_masking(views), args.figure)
        print(f"written {args.figure}")


def check_classifier(argument: "ModelArgument", args: argparse.Namespace, num_classes: int) -> None:
    """Refuse models whose answers are not the images' classes, before anything is measured.

    Random weights pass when they answer with as many numbers, which `count_masked` looks at.

    Args:
        argument: The model as it was asked for.
        args: With the flags of `add_model_flags`.
        num_classes: Of the images.

    Raises:
        ValueError: Names the model and what its weights hold.
    """
    has = None
    if argument.spec.startswith("open_clip:"):
        has = "a CLIP tower answers with an embedding"
    elif argument.seed is None:
        head = argument.load(args.image_size, args.resize).num_classes
        if head is None:
            has = "its weights hold no classifier"
        elif head != num_classes:
            has = f"its classifier has {head} classes"
    if has is not None:
        raise ValueError(
            f"model {argument.name!r}: {has}, and the {num_classes} classes of --imagenet-root {args.imagenet_root} "
            "need a classifier of their own; give a model that was trained on them"
        )


def spread_over_classes(labels: "np.ndarray", num_images: int, seed: int) -> list[int]:
    """Draw images, from each class as many as from any other, or one more.

    Args:
        labels: Integers [len], in any order; a class with too few images gives all that it has.
        num_images: How many to draw.
        seed: Of the draw.

    Returns:
        Ascending indices into `labels`.

    Raises:
        ValueError: More than there are.
    """
    import numpy as np

    if num_images > len(labels):
        raise ValueError(f"--num-images must be at most {len(labels)} (images), got {num_images}")
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    _, starts, sizes = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)  # an image's place among those of its class
    turn[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return sorted(order[np.argsort(turn, kind="stable")[:num_images]].tolist())


def measure(
    argument: "ModelArgument",
    args: argparse.Namespace,
    dataset: "ImageNetDataset",
    chosen: Sequence[int],
    device: "torch.device",
) -> "MaskingView":
    """One model on the chosen images, written to results/ too.

    Args:
        argument: The model as it was asked for.
        args: Parsed, with the images' name in `dataset_name`.
        dataset: Gets the model's transform.
        chosen: Indices into `dataset`.
        device: Where to compute.

    Returns:
        What is drawn and printed, the same in every process.

    Raises:
        ValueError: As `count_masked` and `MaskedAccuracy`; the message names the model.
    """
    from patch_probes import MaskedAccuracy, count_masked
    from score_figures import MaskingView
    from torch.utils.data import Subset

    from last_vit.runtime import is_main_process

    trained = argument.load(args.image_size, args.resize)
    dataset.transform = eval_transform(trained.preprocessing)
    accuracy, num_classes = MaskedAccuracy(sorted(args.shares)), len(dataset.classes)
    loader, model = open_loader(args, Subset(dataset, chosen), argument.name), trained.model.to(device)
    with naming(argument):
        start = time.perf_counter()
        count_masked(
            model, loader, device, accuracy, num_classes, args.global_token, trained.selection(), seed=args.seed
        )
        stats = accuracy.compute()
        seconds = time.perf_counter() - start
    if is_main_process():
        drawn = "" if len(chosen) == len(dataset) else f"{len(chosen)} images by seed {args.seed}"
        write_model_result(
            args,
            "masking_probe",
            argument,
            trained,
            {key: value for key, value in stats.items() if key != "num_images"},
            n_images=stats["num_images"],
            protocol=", ".join(filter(None, [drawn, token_words(args, trained)])),
            config={
                "global_token": args.global_token,
                "num_images": args.num_images,
                "seed": args.seed,
                "batch_size": args.batch_size,
                "left_out": dict(dataset.skipped),
            },
            seconds=seconds,
            device=device,
        )
    return MaskingView(argument.name, stats, accuracy.percents, num_classes)


def _table(views: Sequence["MaskingView"]) -> list[list[str]]:
    from patch_probes import CURVES

    lines = [["model", "masked", "0 %", *(f"{percent} %" for percent in views[0].percents)]]
    for view in views:
        for curve in CURVES:
            shares = [view.stats[f"top1_{curve}_{percent}"] for percent in view.percents]
            lines.append([view.name, curve, *(f"{accuracy:.1f}" for accuracy in (view.stats["top1"], *shares))])
    return lines


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


if __name__ == "__main__":
    main()
