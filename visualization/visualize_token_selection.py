r"""How often each position is selected over a data set, for several K, and how many of the votes fall on the object.

    python visualization/visualize_token_selection.py \
        --checkpoint ViT_190k.pth --imagenet-root /path/to/imagenet --batch-size 32
    python visualization/visualize_token_selection.py \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth \
        --images coco/val2017 --masks coco/annotations/instances_val2017.json --k 1 7 0.5

The first is the release's command (its script, too, takes 500 random images and K = 1); the second compares models on
any folder. One row of maps per model, one map per K: a position's share of all votes over that of uniform voting, so 1
is uniform for every grid. The selection is LaSt's with the model's own variant and --k in place of its own K; a model
that is not pooled with LaSt is asked which patches LaSt would keep. With --boxes or --masks: the share of the votes
inside the object, next to that of uniform voting, over the images that show both object and background. results/ gets
one record per model and K.

Read the numbers beside those of random weights (SPEC@random), which can put as many votes inside as trained ones do. A
channel that is zero on every patch, as after a ConvNet's ReLU, is a tie, whose vote goes to the first patch at K = 1:
the top left corner.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    open_images,
    open_loader,
    print_table,
    write_model_result,
)

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from selection_figure import SelectionView
    from torch.utils.data import Dataset
    from vote_statistics import VoteStatistics

    from last_vit.models import ModelArgument, TrainedModel
    from last_vit.pooling import LaStPool

_RELEASE_MODEL = "torchvision:vit_b_16"
_COLUMNS = {
    "votes_inside": "inside %",
    "votes_inside_uniform": "uniform %",
    "votes_lift": "lift",
    "top_vote_inside": "top patch inside %",
    "vote_area_50": "patches > max / 2 %",
    "position_peak": "peak position",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; --checkpoint, --imagenet-root and --batch-size are the release's."""
    parser = command_parser("visualize_token_selection.py", __doc__)
    add_model_flags(parser, required=False)
    add_image_flags(parser, or_imagenet=True)
    add_loading_flags(parser)
    add_output_flags(parser, "results/token_selection.png")
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        help=f"weights of the one --model that names none; without --model of {_RELEASE_MODEL}, as released",
    )
    add(
        "--k",
        nargs="+",
        type=_kept,
        default=[1],
        metavar="K",
        help="patches kept per channel, several for one map each: numbers (7) or shares (0.5); default 1",
    )
    add("--num-images", type=positive, default=500, help="drawn by --seed; all where there are fewer; default 500")
    add("--seed", type=int, default=0, help="which images; default 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from example_images import choose_images
    from figure_style import save_figure
    from selection_figure import SelectionView, draw_rows
    from torch.utils.data import Subset

    from last_vit.runtime import is_main_process, process_group

    find_images(args)
    rows = []
    with process_group(args.device) as device:
        for argument in models_of(args):
            trained = argument.load(args.image_size, args.resize)
            images = open_images(args, trained.preprocessing)
            chosen = choose_images(len(images), min(args.num_images, len(images)), args.seed, "--num-images")
            trained.model.to(device)
            start = time.perf_counter()
            counted = count_votes(argument.name, trained, Subset(images, chosen), args, device)
            seconds = time.perf_counter() - start
            rows.append([])
            for k, (selection, statistics) in zip(args.k, counted, strict=True):
                view = SelectionView(argument.name, selection.top_k, statistics.frequency(), statistics.compute())
                rows[-1].append(view)
                if is_main_process():
                    config = {"seed": args.seed, "variant": selection.variant, "left_out": dict(images.skipped)}
                    _write(args, argument, trained, view, k, config, seconds, device)
        if not is_main_process():
            return
    _print_rows(rows, len(images))
    save_figure(draw_rows(rows), args.figure)
    print(f"written {args.figure}")


def models_of(args: argparse.Namespace) -> "list[ModelArgument]":
    """The models of --model and --checkpoint.

    Raises:
        ValueError: Bad model texts, neither of the two, or --checkpoint that no single model waits for.
    """
    from last_vit.models import parse_model_arguments

    if args.checkpoint is None:
        if not args.model:
            raise ValueError("no model: give --model, or the release's --checkpoint with weights of a ViT-B/16")
        return parse_model_arguments(args.model)
    if not args.model:
        return parse_model_arguments([f"{_RELEASE_MODEL}@{args.checkpoint}"])
    arguments = parse_model_arguments(args.model)
    if len(arguments) > 1 or arguments[0].checkpoint is not None or arguments[0].seed is not None:
        raise ValueError(
            f"--checkpoint is for one --model that names no weights, got {' '.join(args.model)}; name each model's "
            "own: --model SPEC@CHECKPOINT"
        )
    return [replace(arguments[0], checkpoint=str(args.checkpoint))]


def find_images(args: argparse.Namespace) -> None:
    """Turn --imagenet-root into --images and, where the boxes are found and nothing else is asked for, --boxes.

    Raises:
        ValueError: --imagenet-label-dir that would be ignored.
        FileNotFoundError: No val/ below the root, no boxes in --imagenet-label-dir.
    """
    from last_vit.data.imagenet_layout import find_annotation_folder, find_split_folder
    from last_vit.runtime import is_main_process

    label_dir, has_objects = args.imagenet_label_dir, args.boxes is not None or args.masks is not None
    if label_dir is not None and (args.imagenet_root is None or has_objects):
        raise ValueError("--imagenet-label-dir goes with --imagenet-root, and with neither --boxes nor --masks")
    if args.imagenet_root is None:
        return
    args.images = find_split_folder(args.imagenet_root, "val")
    if has_objects:
        return
    try:
        args.boxes = find_annotation_folder(args.images, "val", label_dir)
    except FileNotFoundError:
        if label_dir is not None:
            raise
        if is_main_process():
            print(f"no XML boxes beside {args.images}: the share of votes inside objects is left out", file=sys.stderr)


def count_votes(
    name: str, trained: "TrainedModel", images: "Dataset", args: argparse.Namespace, device: "torch.device"
) -> "list[tuple[LaStPool, VoteStatistics]]":
    """One pass of a model over the images.

    Args:
        name: Of the model, for messages.
        trained: On `device`.
        images: `ForegroundImages`, or a part of them.
        args: With `k` and the flags of `add_loading_flags`.
        device: Where to compute.

    Returns:
        Per K of `args.k` the selection, its K a number of patches, and its votes.

    Raises:
        ValueError: K larger than the number of patches; the message names the model and both.
    """
    import torch
    from patch_foreground import patch_foreground
    from vote_statistics import VoteStatistics

    from last_vit.dense import dense_batches, dense_forward
    from last_vit.pooling import last_select, resolve_top_k, vote_count

    crop = trained.preprocessing.crop
    try:
        with torch.inference_mode():  # the grid, for every process, also one that gets no image
            grid_hw = dense_forward(trained.model, torch.zeros(1, 3, crop, crop, device=device)).grid_hw
        kept = [resolve_top_k(k, grid_hw[0] * grid_hw[1]) for k in args.k]
    except ValueError as error:
        raise ValueError(f"model {name!r} on {crop} px: {error}") from error
    if len(set(kept)) < len(kept):
        raise ValueError(f"model {name!r}: --k {args.k} gives {kept} patches, of which some are the same")
    counted = [(trained.selection(top_k=k), VoteStatistics(grid_hw)) for k in kept]
    for output, batch in dense_batches(trained.model, open_loader(args, images, name), device):
        is_foreground, is_known = patch_foreground(batch["foreground"], grid_hw)
        for pool, statistics in counted:
            topk_idx = last_select(output.patch_tokens, pool.top_k, pool.sigma, pool.variant)
            statistics.update(vote_count(topk_idx, output.patch_tokens.shape[1]), is_foreground, is_known)
    return counted


def _write(
    args: argparse.Namespace,
    argument: "ModelArgument",
    trained: "TrainedModel",
    view: "SelectionView",
    asked: int | float,
    config: dict[str, object],
    seconds: float,
    device: "torch.device",
) -> None:
    """The record of one model and K; `asked` is K as the command gave it, so that file names survive other grids."""
    num_patches = view.frequency.numel()
    source = "masks, " if args.masks else "boxes, " if args.boxes else ""
    write_model_result(
        argparse.Namespace(**{**vars(args), "output": f"{args.output or 'votes'}_k{asked}"}),
        "votes",
        argument,
        trained,
        {key: value for key, value in view.metrics.items() if key != "num_images"},
        n_images=int(view.metrics["num_images"]),
        protocol=f"{source}votes of K = {view.k} of {num_patches}",
        config={**config, "k": asked, "grid_hw": list(view.frequency.shape)},
        seconds=seconds,
        device=device,
    )


def _print_rows(rows: "Sequence[Sequence[SelectionView]]", num_images: int) -> None:
    views = [view for row in rows for view in row]
    keys = [key for key in _COLUMNS if any(key in view.metrics for view in views)]
    cells = [["model", "K", *(_COLUMNS[key] for key in keys)]]
    for view in views:
        numbers = [f"{view.metrics[key]:.4g}" if key in view.metrics else "-" for key in keys]
        cells.append([view.name, f"{view.k} of {view.frequency.numel()}", *numbers])
    print_table(cells)
    counted = views[0].metrics
    with_object = counted.get("num_object_images")
    inside = "" if with_object is None else f"; inside: over the {with_object} that show both object and background"
    print(f"{counted['num_images']} of {num_images} images{inside}")


def _kept(text: str) -> int | float:
    """K on the command line: a number of patches, or a share of them."""
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = 0
    if not (0 < value <= 1 if isinstance(value, float) else value >= 1):
        raise argparse.ArgumentTypeError(f"K is a number of patches (7) or a share of them in (0, 1] (0.5), got {text}")
    return value


if __name__ == "__main__":
    main()
