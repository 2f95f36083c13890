r"""One picture of what models look at: patch scores and votes, image by image, model beside model.

    python visualization/compare_models.py --imagenet-root data/imagenet \
        --model CLS=cls_pretrain/conf.py@cls.pth --model "LaSt K=1=cls_pretrain/conf.py@last.pth"
    python visualization/compare_models.py --images photos/ --model DINO=dino:vit_small/16@dino.pth

Rows are images drawn by --seed (of ImageNet's only those with one object), columns the image with the outline of its
objects and, per model, its patch score and its votes. Votes are those of LaSt's selection with the model's own K, or
K = 1 for a model that is not pooled with LaSt; the column title says which. (A channel that is zero everywhere, as many
are behind a ConvNet's ReLU, votes for the first patch.) The mark is the best patch: green when its centre lies on an
object, red when it does not, grey where that is not known. Colours run from each map's lowest to its highest value
(votes from 0), so they compare patches of one image, never images or models.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import (
    add_figure_flag,
    add_image_flags,
    add_model_flags,
    check_image_flags,
    eval_transform,
    image_set_name,
    open_images,
)

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from example_images import ExampleImages
    from foreground_images import ForegroundImages
    from matplotlib.axes import Axes
    from torch import Tensor

    from last_vit.models import TrainedModel

_CELL_INCHES = 1.7  # side of one panel


@dataclass(frozen=True)
class ModelView:
    """What the picture shows of one model.

    Attributes:
        titles: Of its score column and of its vote column.
        examples: M images as the model takes them.
        score_maps: [M, h, w].
        vote_maps: [M, h, w].
        peaks_xy: [M, 2], centre of the best patch, pixels of the pictures.
        peaks_on: uint8 [M], what lies there: 1 object, 0 background, 255 unknown.
    """

    titles: tuple[str, str]
    examples: "ExampleImages"
    score_maps: "Tensor"
    vote_maps: "Tensor"
    peaks_xy: "Tensor"
    peaks_on: "Tensor"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("compare_models.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser, or_imagenet=True)
    add_figure_flag(parser, "results/compare_models.png")
    add = parser.add_argument
    add("--num-images", type=positive, help="rows; default 6, or all images there are")
    add("--seed", type=int, default=0, help="which images; default 0")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    # imported after parsing, so that --help needs neither torch nor any host library
    from example_images import choose_images

    from last_vit.data.imagenet_layout import find_annotation_folder, find_split_folder
    from last_vit.models import parse_model_arguments
    from last_vit.preprocessing import Preprocessing
    from last_vit.runtime import select_device

    check_image_flags(args)
    arguments = parse_model_arguments(args.model)
    device = select_device(args.device)
    if args.imagenet_root is not None:
        args.images = find_split_folder(args.imagenet_root, "val")
        args.boxes = find_annotation_folder(args.images, "val", args.imagenet_label_dir)
    images = open_images(args, Preprocessing())
    shown = range(len(images)) if args.imagenet_root is None else images.single_objects()[0]
    chosen = [shown[place] for place in choose_images(len(shown), args.num_images, args.seed, "--num-images")]
    views = []
    for argument in arguments:
        trained = argument.load(args.image_size, args.resize)
        images.transform = eval_transform(trained.preprocessing)
        views.append(compute_view(argument.name, trained, images, chosen, device))
    show_views(views, args.figure)
    print(f"written {args.figure}: {len(chosen)} of {len(shown)} images of {image_set_name(args)}")


def compute_view(
    name: str, trained: "TrainedModel", images: "ForegroundImages", chosen: Sequence[int], device: "torch.device"
) -> ModelView:
    """Run one model over the chosen images.

    Args:
        name: For the column titles.
        trained: The model.
        images: With the transform of the model's preprocessing.
        chosen: Indices into `images`.
        device: Where to compute.

    Returns:
        Everything that is drawn, on the CPU.
    """
    import torch
    from example_images import load_examples

    from last_vit.dense import dense_forward
    from last_vit.patch_scores import patch_score, peak_index
    from last_vit.pooling import last_select, vote_count

    examples, selection = load_examples(images, chosen, trained.preprocessing), trained.selection()
    with torch.inference_mode():
        output = dense_forward(trained.model.to(device), examples.inputs.to(device))
        score = patch_score(output.patch_tokens, output.global_token).cpu()
        topk_idx = last_select(output.patch_tokens, selection.top_k, selection.sigma, selection.variant)
        votes = vote_count(topk_idx, score.shape[1]).cpu()
    peak, (height, width) = peak_index(score), output.grid_hw
    side = trained.preprocessing.crop
    peaks_xy = torch.stack([(peak % width + 0.5) / width, (peak // width + 0.5) / height], dim=1) * side
    column, row = peaks_xy.long().unbind(dim=1)
    return ModelView(
        titles=(f"{name}\npatch score", f"{name}\nvotes, K = {selection.top_k}"),
        examples=examples,
        score_maps=score.unflatten(1, output.grid_hw),
        vote_maps=votes.unflatten(1, output.grid_hw),
        peaks_xy=peaks_xy,
        peaks_on=examples.foregrounds[torch.arange(len(chosen)), row, column],
    )


def show_views(views: Sequence[ModelView], path: Path) -> None:
    """Draw the picture.

    Args:
        views: One per model, of the same images.
        path: Picture to write.
    """
    from figure_style import COLORMAP, hide_ticks, house_style, new_figure, save_figure
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    num_rows, num_columns = len(views[0].score_maps), 1 + 2 * len(views)
    figure, axes = new_figure(num_rows, num_columns, _CELL_INCHES, _CELL_INCHES)
    figure.set_layout_engine("compressed", w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    for row in range(num_rows):
        _draw_image(axes[row][0], views[0], row)
        for column, view in enumerate(views):
            score, votes = axes[row][1 + 2 * column], axes[row][2 + 2 * column]
            _draw_map(score, view, row, view.score_maps[row], float(view.score_maps[row].min()))
            _draw_peak(score, view, row)
            _draw_map(votes, view, row, view.vote_maps[row], 0.0)
        hide_ticks(axes[row])
    found = {int(value) for view in views for value in view.peaks_on}
    with house_style():
        axes[0][0].set_title("image and object" if found - {255} else "image", fontsize=9)
        for column, view in enumerate(views):
            for offset, title in enumerate(view.titles):
                axes[0][1 + 2 * column + offset].set_title(title, fontsize=9)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor="black", markersize=6, label=label)
            for value, (color, label) in _marks().items()
            if value in found
        ]
        levels = ((0.05, "low"), (0.95, "high"))
        handles += [Patch(color=colormaps[COLORMAP](level), label=label) for level, label in levels]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4)
    save_figure(figure, path)


def _marks() -> dict[int, tuple[str, str]]:
    """What lies under a best patch -> colour and words."""
    from figure_style import HIT, MISS

    return {
        1: (HIT, "best patch, on an object"),
        0: (MISS, "best patch, beside"),
        255: ("#b0b0b0", "best patch, object unknown"),
    }


def _draw_image(axes: "Axes", view: ModelView, row: int, grey: bool = False) -> None:
    from example_images import draw_picture

    picture = view.examples.pictures[row]
    if grey:  # so that the map has the colours to itself
        picture = picture.mean(axis=2, keepdims=True).repeat(3, axis=2)
    draw_picture(axes, picture, view.examples.foregrounds[row])


def _draw_map(axes: "Axes", view: ModelView, row: int, values: "Tensor", lowest: float) -> None:
    from figure_style import COLORMAP

    side = view.examples.pictures.shape[1]
    highest = max(float(values.max()), lowest + 1e-12)
    _draw_image(axes, view, row, grey=True)
    axes.imshow(values.numpy(), cmap=COLORMAP, alpha=0.7, vmin=lowest, vmax=highest, extent=(0, side, side, 0))


def _draw_peak(axes: "Axes", view: ModelView, row: int) -> None:
    x, y = view.peaks_xy[row].tolist()
    color, _ = _marks()[int(view.peaks_on[row])]
    axes.plot(x, y, "o", markersize=7, markerfacecolor=color, markeredgecolor="black", markeredgewidth=1.2)


if __name__ == "__main__":
    main()
