r"""Vote maps: the patches that LaSt's channels chose, at more than 50, 30 and 20 % of the top vote (paper figure 5).

    python visualization/visualize_votes.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/votes.png

Rows are images (drawn by --seed), columns the image with the outline of its objects and, per model, the patches above
each level, the rest dark and grey, and the votes themselves, from 0 to the image's top vote. Votes are those of LaSt's
selection with the model's own K, or with K = 1 for a model that is not pooled with LaSt (what LaSt would keep of it);
the titles say which. Below each map: the share of the shown patches, and of the votes, that is object.
Draws and prints, and writes no record: numbers over a data set are visualize_token_selection.py's.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diagnostic_cli import add_figure_flag, add_image_flags, add_model_flags, image_set_name, open_images

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from example_images import ExampleImages
    from foreground_images import ForegroundImages
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from last_vit.models import TrainedModel


@dataclass(frozen=True)
class VoteView:
    """What is drawn of one model.

    Attributes:
        title: Of its columns: the model and the selection.
        images: As the model takes them.
        votes: long [M, h, w].
        above: bool [M, L, h, w], the patches above each of `LEVELS`.
        captions: Below each of the M * (L + 1) maps: how much of it is object, where that is known.
    """

    title: str
    images: "ExampleImages"
    votes: "Tensor"
    above: "Tensor"
    captions: list[list[str]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("visualize_votes.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add_figure_flag(parser, "results/votes.png")
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    add("--num-images", type=positive, help="rows; default 6, or all images there are")
    add("--seed", type=int, default=0, help="which images; default 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from example_images import choose_images
    from figure_style import save_figure

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import select_device

    device = select_device(args.device)
    views = []
    for argument in parse_model_arguments(args.model):
        trained = argument.load(args.image_size, args.resize)
        images = open_images(args, trained.preprocessing)
        chosen = choose_images(len(images), args.num_images, args.seed, "--num-images")
        trained.model.to(device)
        views.append(compute_view(argument.name, trained, images, chosen, device))
    save_figure(draw_views(views), args.figure)
    print(f"written {args.figure}: {len(chosen)} of the {len(images)} images of {image_set_name(args)}")


def compute_view(
    name: str, trained: "TrainedModel", images: "ForegroundImages", chosen: Sequence[int], device: "torch.device"
) -> VoteView:
    """Run one model over the chosen images.

    Args:
        name: Of the model.
        trained: On `device`.
        images: Where they are taken from.
        chosen: Indices into `images`.
        device: Where to compute.

    Returns:
        Everything that is drawn, on the CPU.

    Raises:
        ValueError: K larger than the number of patches; the message names the model and both.
    """
    import torch
    from example_images import load_examples
    from patch_foreground import patch_foreground
    from vote_statistics import vote_levels

    from last_vit.dense import dense_forward
    from last_vit.pooling import last_select, vote_count

    examples, pool = load_examples(images, chosen, trained.preprocessing), trained.selection()
    try:
        with torch.inference_mode():
            output = dense_forward(trained.model, examples.inputs.to(device))
            topk_idx = last_select(output.patch_tokens, pool.top_k, pool.sigma, pool.variant)
    except ValueError as error:
        raise ValueError(f"model {name!r} on {trained.preprocessing.crop} px: {error}") from error
    votes = vote_count(topk_idx, output.patch_tokens.shape[1]).cpu()
    above = vote_levels(votes)
    is_foreground, is_known = patch_foreground(examples.foregrounds, output.grid_hw)
    known = torch.cat([above.long(), votes[:, None]], dim=1) * is_known[:, None]
    shares = zip((known * is_foreground[:, None]).sum(dim=2).tolist(), known.sum(dim=2).tolist(), strict=True)
    own = "" if trained.pooling["pool"] == "last" else " (the model is not pooled with LaSt)"
    return VoteView(
        title=f"{name}: votes, K = {pool.top_k}{own}",
        images=examples,
        votes=votes.unflatten(1, output.grid_hw),
        above=above.unflatten(2, output.grid_hw),
        captions=[[_caption(*pair) for pair in zip(inside, both, strict=True)] for inside, both in shares],
    )


def draw_views(views: Sequence[VoteView]) -> "Figure":
    """Rows of images; the image, then per model one column per level and one with the votes."""
    from example_images import draw_picture
    from figure_style import COLORMAP, hide_ticks, house_style, new_figure
    from torch.nn.functional import interpolate
    from vote_statistics import LEVELS

    per_model = len(LEVELS) + 1
    figure, axes = new_figure(len(views[0].votes), 1 + per_model * len(views), width=1.35, height=1.5)
    with house_style():
        for row, panels in enumerate(axes):
            hide_ticks(panels)
            draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
            for index, view in enumerate(views):
                group = panels[1 + per_model * index : 1 + per_model * (index + 1)]
                picture, votes = view.images.pictures[row], view.votes[row]
                side = len(picture)
                extent = (0, side, side, 0)
                for panel, mask in zip(group, view.above[row], strict=False):
                    shown = interpolate(mask[None, None].float(), size=(side, side), mode="nearest")[0, 0].numpy()
                    show_selected(panel, picture, shown)
                group[-1].imshow(votes.numpy(), cmap=COLORMAP, vmin=0, interpolation="nearest", extent=extent)
                for panel, caption in zip(group, view.captions[row], strict=True):
                    panel.set_xlabel(caption, fontsize=7, labelpad=2)
        axes[0][0].set_title("image")
        for index, view in enumerate(views):
            group = axes[0][1 + per_model * index :]
            for panel, level in zip(group, LEVELS, strict=False):
                panel.set_title(f"\n> {100 * level:g} %")
            group[per_model - 1].set_title("votes")
            # over all columns of the model, so it must not widen the first one
            place = {"xycoords": "axes fraction", "xytext": (0, 20), "textcoords": "offset points"}
            group[0].annotate(view.title, (0, 1), **place, fontsize=11, fontweight="bold").set_in_layout(False)
    return figure


def show_selected(axes: "Axes", picture: "np.ndarray", shown: "np.ndarray") -> None:
    """The picture, dark and grey outside the mask, whose rim is drawn: on dark images, too, one sees what is selected.

    Args:
        axes: Gets the crop's pixels as coordinates.
        picture: [S, S, 3] in [0, 1].
        shown: [S, S], 1 on the selected patches and 0 elsewhere.
    """
    import numpy as np
    from figure_style import HIT

    side, inside = len(picture), shown[..., None]
    dimmed = 0.35 * picture.mean(axis=2, keepdims=True)
    axes.imshow(inside * picture + (1 - inside) * dimmed, extent=(0, side, side, 0))
    centres = np.arange(-1, side + 1) + 0.5
    axes.contour(centres, centres, np.pad(shown, 1), levels=[0.5], colors=HIT, linewidths=0.7)
    axes.set(xlim=(0, side), ylim=(side, 0))


def _caption(inside: int, known: int) -> str:
    return f"object {100 * inside / known:.0f} %" if known else ""


if __name__ == "__main__":
    main()
