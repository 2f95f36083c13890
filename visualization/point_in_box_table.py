r"""Point-in-Box of many models in one table, with norm flag and baselines (paper tables 1 and 3).

    python visualization/point_in_box_table.py --imagenet-root /path/to/imagenet \
        --model "ViT, LaSt=torchvision:vit_b_16@ViT_190k.pth" --model ResNet=torchvision:resnet50@resnet50.pth \
        --model control=torchvision:resnet50@random
    python visualization/point_in_box_table.py --images coco/val2017 --boxes coco/annotations/instances_val2017.json ...

Only images with exactly one annotated object count, and by default only those whose box is smaller than a quarter of
the image. "outliers %" is the share of patches with a high norm before the final norm, over the same images, and "high
norm" says yes from 0.5 % on; last_vit/metrics/patch_norms.py has the rule. A random patch and the image's centre score
what they would score on the same images and the model's own grid. top-1 is given where the images have labels and the
model's head as many classes. `torchrun --nproc-per-node 8` in place of `python` counts every image once.

Every model is loaded and run on one image before any is measured, so that a mistake in the last one shows at once.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diagnostic_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    check_image_flags,
    write_model_result,
)
from point_in_box_protocol import (
    add_protocol_flags,
    left_out_words,
    measure_hits,
    open_folder,
    open_imagenet,
    protocol_config,
    protocol_words,
)
from token_cli import check_model

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    import torch
    from point_in_box_protocol import BoxedImages

    from last_vit.models import ModelArgument

_COLUMNS = {
    "high_norm": "high norm",
    "outlier_share": "outliers %",
    "point_in_box": "PiB",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
    "acc1": "top-1",
    "num_images": "images",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("point_in_box_table.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser, or_imagenet=True)
    add_protocol_flags(parser)
    add_loading_flags(parser)
    add_output_flags(parser, figure=None)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    check_image_flags(args)
    images = open_folder(args) if args.imagenet_root is None else open_imagenet(args)
    args.dataset_name = images.name
    rows = {}
    with process_group(args.device) as device:
        for argument in arguments:
            check_model(argument, args, device)
        for argument in arguments:
            rows[argument.name] = measure_model(argument, args, images, device)
        if is_main_process():
            print("\n".join(table_lines(rows)))
            print(f"{images.name}, {protocol_words(args, None)}; percent; left out: {left_out_words(images)}")


def measure_model(
    argument: "ModelArgument", args: argparse.Namespace, images: "BoxedImages", device: "torch.device"
) -> dict[str, float]:
    """One row of the table, written to results/ too.

    Args:
        argument: The model as it was asked for.
        args: Parsed, with the images' name in `dataset_name`.
        images: What to measure on.
        device: Where to compute.

    Returns:
        The metrics of `measure_hits`, "outlier_share" (percent) and "high_norm" (1 or 0).

    Raises:
        ValueError: As `measure_hits` and `PatchNorms.compute`; the message names the model.
    """
    from last_vit.metrics.patch_norms import PatchNorms
    from last_vit.runtime import is_main_process

    trained = argument.load(args.image_size, args.resize)
    selection, patch_norms = trained.selection(), PatchNorms()
    try:
        metrics, seconds = measure_hits(
            args, argument.name, argument.spec, trained, selection, images, device, patch_norms
        )
        norms = patch_norms.compute()
    except ValueError as error:
        raise ValueError(f"model {argument.name!r}: {error}") from error
    metrics = {**metrics, "outlier_share": norms["outlier_share"], "high_norm": norms["high_norm"]}
    if is_main_process():
        is_extra_token = args.global_token == "last" and argument.pool != "last"  # noqa: S105
        write_model_result(
            args,
            "point_in_box",
            argument,
            trained,
            {key: value for key, value in metrics.items() if key != "num_images"},
            n_images=metrics["num_images"],
            protocol=protocol_words(args, selection if is_extra_token else None),
            config={**protocol_config(args, images), "norm_cutoff": norms["cutoff"]},
            seconds=seconds,
            device=device,
        )
    return metrics


def table_lines(rows: dict[str, dict[str, float]]) -> list[str]:
    """The table in Markdown, aligned.

    Args:
        rows: Model's name -> its metrics; a metric that no model has is no column.
    """
    keys = [key for key in _COLUMNS if any(key in row for row in rows.values())]
    cells = [["model", *(_COLUMNS[key] for key in keys)]]
    cells += [[name, *(_cell(key, row) for key in keys)] for name, row in rows.items()]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return [
        "| " + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ) + " |"
        for line in cells
    ]  # fmt: skip


def _cell(key: str, row: dict[str, float]) -> str:
    if key not in row:
        return "-"
    if key == "high_norm":
        return "yes" if row[key] else "no"
    return f"{row[key]:,}" if key == "num_images" else f"{row[key]:.2f}"


if __name__ == "__main__":
    main()
