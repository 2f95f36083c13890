r"""One HTML page that compares models on a folder of images: numbers, distributions, and every patch of a gallery.

    python visualization/make_report.py --images coco/val2017 --boxes coco/annotations/instances_val2017.json \
        --model "CLS=cls_pretrain/conf.py@cls.pth" --model "LaSt K=1=cls_pretrain/conf.py@last.pth" --out report/

Writes `report/index.html`, which needs nothing beside it (no network, no other file), and `report/report.json` with its
numbers. Statistics are over all images; the gallery shows `--num-images` of them. Scores are against the token that the
model is pooled with; a hit is a best patch whose centre lies in the box. Images without annotation are welcome: what
cannot be computed is left out. The masking probe and the dynamics need labels and runs, and have commands of their own:
probe_masking.py and plot_dynamics.py.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostic_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    image_set_name,
    open_images,
    open_loader,
    print_table,
)

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    from foreground_images import ForegroundImages
    from report_data import ModelMeasures

    from last_vit.models import ModelArgument, TrainedModel


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("make_report.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add = parser.add_argument
    add("--num-images", type=positive, default=48, help="images in the gallery at most; default 48")
    add("--seed", type=int, default=0, help="which images; default 0")
    add_loading_flags(parser)
    add(
        "--out", type=Path, default=Path("report"), help="folder to write index.html and report.json to; default report"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    # imported after parsing, so that --help needs neither torch nor any host library
    import torch
    from report_data import measure_model
    from report_page import build_page

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import process_group, world_size

    measured = []
    with process_group(args.device) as device:
        if world_size() > 1:
            raise ValueError(f"one page is made by one process, not {world_size()}: start it with python, not torchrun")
        for argument in parse_model_arguments(args.model):
            trained = argument.load(args.image_size, args.resize)
            images = open_images(args, trained.preprocessing)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
            chosen = sorted(order[: args.num_images].tolist())
            measures = measure_model(
                trained.model.to(device),
                open_loader(args, images, argument.name),
                device,
                trained.preprocessing,
                trained.selection(),
                set(chosen),
            )
            trained.model.cpu()
            measured.append((argument, trained, measures))
    content = report_content(args, images, chosen, measured)
    page = build_page(content)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "index.html").write_text(page, encoding="utf-8")
    record = json.dumps(report_numbers(content), indent=2, allow_nan=False)
    (args.out / "report.json").write_text(record + "\n", encoding="utf-8")
    _print_summary(content)
    print(f"written {args.out / 'index.html'} ({len(page.encode()) / 1e6:.2f} MB) and {args.out / 'report.json'}")


def report_content(
    args: argparse.Namespace,
    images: "ForegroundImages",
    chosen: Sequence[int],
    measured: Sequence[tuple["ModelArgument", "TrainedModel", "ModelMeasures"]],
) -> dict[str, Any]:
    """Everything that the page shows, as JSON values.

    Args:
        args: The command line.
        images: The images, as the last model takes them.
        chosen: Indices of the images in the gallery.
        measured: Every model as it was asked for and loaded, and its measures.

    Returns:
        "title", "date", "command", "commit", "colormap" (256 colours, 6 hexadecimal digits each), "images", "models",
        "gallery" and "notes"; what the last three hold is written down where they are made.
    """
    from figure_style import COLORMAP
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from report_gallery import disagreement, norm_decimals, pack_image

    from last_vit.data.image_files import load_rgb
    from last_vit.results import git_commit, run_command

    all_measures = [measures for _, _, measures in measured]
    grids = [measures.grid_hw for measures in all_measures]
    decimals = [norm_decimals(list(measures.views.values())) for measures in all_measures]
    gallery = []
    for index in chosen:
        views = [measures.views[index] for measures in all_measures]
        path = images.image_paths[index]
        name = path.relative_to(images.folder).as_posix()
        packed = pack_image(load_rgb(path), views, decimals)
        gallery.append({"name": name, "disagreement": disagreement(views, grids), **packed})
    annotation = "boxes" if args.boxes is not None else "masks" if args.masks is not None else None
    return {
        "title": " / ".join(argument.name for argument, _, _ in measured) + " - diagnostics",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": run_command(),
        "commit": git_commit(),
        "colormap": "".join(to_hex(color)[1:] for color in colormaps[COLORMAP](range(256))),
        "images": {
            "name": image_set_name(args),
            "count": len(images),
            "annotation": annotation,
            "skipped": dict(images.skipped),
            "seed": args.seed,
        },
        "models": [
            _model_content(place, *entry, num_decimals)
            for place, (entry, num_decimals) in enumerate(zip(measured, decimals, strict=True))
        ],
        "gallery": gallery,
        "notes": _notes(args, images),
    }


def report_numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """The aggregate numbers of a page, and of each image of its gallery how the models did."""
    models = [{key: value for key, value in model.items() if key != "color"} for model in content["models"]]
    gallery = [
        {
            "name": item["name"],
            "disagreement": item["disagreement"],
            "hit": [view["hit"] for view in item["views"]],
            "auroc": [view["auroc"] for view in item["views"]],
        }
        for item in content["gallery"]
    ]
    kept = ("title", "date", "command", "commit", "images")
    return {**{key: content[key] for key in kept}, "models": models, "gallery": gallery}


def _model_content(
    place: int, argument: "ModelArgument", trained: "TrainedModel", measures: "ModelMeasures", num_decimals: int
) -> dict[str, Any]:
    """One model: what it is in words, its grid, its numbers and the lines of its charts."""
    from figure_style import model_color

    from last_vit.results import hide_machine_paths

    prep, (height, width), selection = trained.preprocessing, measures.grid_hw, trained.selection()
    pooling = ", ".join(f"{key}={value}" for key, value in trained.pooling.items() if value is not None)
    weights = f"random, seed {argument.seed}" if argument.seed is not None else f"sha256 {trained.checkpoint_sha256}"
    return {
        "name": argument.name,
        "color": model_color(place),
        "spec": hide_machine_paths(argument.spec),
        "weights": weights,
        "pooling": f"{pooling} ({trained.pooling_source})",
        "input": f"shorter side {prep.resize}, crop {prep.crop} px",
        "patches": f"{height} \u00d7 {width}, {measures.num_channels} channels",
        "votes": f"K = {selection.top_k}, {selection.variant}",
        "grid": [height, width],
        "norm_decimals": num_decimals,
        "metrics": measures.metrics,
        "charts": measures.charts,
    }


def _notes(args: argparse.Namespace, images: "ForegroundImages") -> list[tuple[str, str]]:
    """Terms and what they mean, for the end of the page."""
    from last_vit.results import git_commit, run_command

    left_out = ", ".join(f"{count} {reason}" for reason, count in images.skipped.items() if count)
    known = {
        "boxes": "A patch is object when more than half of its known area lies in a box.",
        "masks": "A patch is object when more than half of its known area lies in a mask.",
        None: "Nothing is known about objects on these images.",
    }["boxes" if args.boxes is not None else "masks" if args.masks is not None else None]
    return [
        (
            "Patch score",
            "Cosine of a patch token with the token that the model is pooled with, both after the final norm. The best "
            "patch has the highest score. A hit is a best patch whose centre lies in the box, on images with exactly "
            "one object and whatever the box's size.",
        ),
        ("Object", f"{known} Padding and crowd regions are unknown and count as neither."),
        (
            "Votes",
            "How many channels chose a patch in LaSt's selection, with the model's own K; with K = 1 for a model that "
            "is not pooled with LaSt.",
        ),
        (
            "Norm",
            "L2 norm of a patch token at the model's output, before its final norm. The cut-off is the higher of "
            "Q3 + 3 (Q3 \u2212 Q1) and twice the median of all patches; high norm is yes when at least 0.5 % lie at or "
            "above it. It is a rule for outliers: look at the histogram too.",
        ),
        (
            "Disagreement",
            "1 minus the mean Pearson correlation of the score maps of every two models, on the part of the image that "
            "all of them see, interpolated to the finest of their grids: 0 is the same map, 1 unrelated ones.",
        ),
        (
            "Colours",
            "Of a map, they run from its lowest to its highest value (votes from 0): they compare patches of one map, "
            "never images or models. Numbers beside the maps are rounded, never clipped.",
        ),
        (
            "Not here",
            "The masking probe and the dynamics of training, which need labels and runs: they are made by "
            "probe_masking.py and plot_dynamics.py.",
        ),
        ("Left out", f"{left_out}." if left_out else "No image."),
        ("Command", f"{run_command()} (commit {git_commit()})"),
    ]


def _print_summary(content: Mapping[str, Any]) -> None:
    """The page's main numbers, one line per model."""
    columns = (
        ("PiB", "point_in_box", "point_in_box"),
        ("AUROC", "score_distribution", "auroc"),
        ("bg top 10", "score_distribution", "background_top_10"),
        ("votes in", "vote_statistics", "votes_inside"),
        ("lift", "vote_statistics", "votes_lift"),
        ("outliers", "patch_norms", "outlier_share"),
        ("corr", "patch_norms", "correlation"),
    )
    cells = [["model", *(title for title, _, _ in columns)]]
    for model in content["models"]:
        values = [model["metrics"].get(metric, {}).get(key) for _, metric, key in columns]
        cells.append([model["name"], *("-" if value is None else f"{value:.2f}" for value in values)])
    print_table(cells)


if __name__ == "__main__":
    main()
