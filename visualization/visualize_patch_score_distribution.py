r"""Patch scores of objects against background, as histograms and numbers (paper Sec. 4, figure 2a).

    python visualization/visualize_patch_score_distribution.py --images coco/val2017 \
        --masks coco/annotations/instances_val2017.json --model CLS=cls_pretrain/conf.py@cls.pth \
        --model LaSt=cls_pretrain/conf.py@last.pth

A patch is object when more than half of what is known of it is; scores are min-max normalised per image. AUROC is how
often an object patch scores higher than a background patch of the same image (50 is chance); "bg top p" is background's
share of an image's best p percent of patches, to be read against "bg all", its share of all patches. Only images that
show both count. The densities are drawn smoothed, as released (120 bins, kernel 1 2 3 2 1); the numbers are exact.
"""

import argparse
import time
from collections.abc import Sequence
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
from token_cli import add_token_flag, check_model, naming, token_words

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    import torch
    from score_figures import ScoreView

    from last_vit.models import ModelArgument

_COLUMNS = {
    "auroc": "AUROC",
    "auroc_pooled": "pooled",
    "background_top_1": "bg top 1 %",
    "background_top_5": "bg top 5 %",
    "background_top_10": "bg top 10 %",
    "background_top_50": "bg top 50 %",
    "background_share": "bg all",
}
_LEFT_OUT = {
    "num_unknown": "nothing known",
    "num_no_foreground": "no object patch",
    "num_no_background": "no background patch",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("visualize_patch_score_distribution.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add_token_flag(parser)
    add_loading_flags(parser)
    add_output_flags(parser, "results/patch_score_distribution.png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from figure_style import save_figure
    from score_figures import draw_distributions

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    if args.boxes is None and args.masks is None:
        raise ValueError("what is object is not known: give --boxes or --masks")
    arguments = parse_model_arguments(args.model)
    with process_group(args.device) as device:
        for argument in arguments:
            check_model(argument, args, device)
        views = [measure(argument, args, device) for argument in arguments]
        if not is_main_process():
            return
        print_table(
            [
                ["model", *_COLUMNS.values(), "images"],
                *(
                    [view.name, *(f"{view.stats[key]:.1f}" for key in _COLUMNS), f"{view.stats['num_images']:,}"]
                    for view in views
                ),
            ]
        )
        for view in views:
            notes = {words: view.stats[key] for key, words in _LEFT_OUT.items()}
            notes["scores all the same (counted)"] = view.stats["num_constant"]
            words = ", ".join(f"{number} {note}" for note, number in notes.items() if number)
            if words:
                print(f"{view.name}: {words}")
        save_figure(draw_distributions(views), args.figure)
        print(f"written {args.figure}")


def measure(argument: "ModelArgument", args: argparse.Namespace, device: "torch.device") -> "ScoreView":
    """One pass of a model over the images, written to results/ too.

    Args:
        argument: The model as it was asked for.
        args: Parsed.
        device: Where to compute.

    Returns:
        What is drawn and printed, the same in every process.

    Raises:
        ValueError: As `count_patch_scores` and `ScoreDistribution`; the message names the model.
    """
    from patch_probes import count_patch_scores
    from score_distribution import ScoreDistribution
    from score_figures import NUM_BINS, ScoreView

    from last_vit.runtime import is_main_process

    trained = argument.load(args.image_size, args.resize)
    images = open_images(args, trained.preprocessing)
    distribution = ScoreDistribution(NUM_BINS)
    loader, model = open_loader(args, images, argument.name), trained.model.to(device)
    with naming(argument):
        start = time.perf_counter()
        count_patch_scores(model, loader, device, distribution, args.global_token, trained.selection())
        stats = distribution.compute()
        seconds = time.perf_counter() - start
        view = ScoreView(argument.name, stats, *(part.numpy() for part in distribution.histograms()))
    counts = {key: stats[key] for key in ("num_images", "num_constant", *_LEFT_OUT)}
    if is_main_process():
        write_model_result(
            args,
            "score_distribution",
            argument,
            trained,
            {key: stats[key] for key in _COLUMNS},
            n_images=stats["num_images"],
            protocol=token_words(args, trained),
            config={
                "global_token": args.global_token,
                "objects": "masks" if args.boxes is None else "boxes",
                "batch_size": args.batch_size,
                **{key: value for key, value in counts.items() if key != "num_images"},
                "left_out": dict(images.skipped),
            },
            seconds=seconds,
            device=device,
        )
    return view


if __name__ == "__main__":
    main()
