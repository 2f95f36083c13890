"""Images in rows, maps of their patches in columns, model beside model: scores, votes and norms (paper figure 5).

Letters: M images, S the crop's side in pixels, L levels of votes, h x w patches.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from figure_style import (
    COLORMAP,
    HIT,
    MISS,
    ExampleImages,
    choose_images,
    draw_picture,
    draw_rim,
    hide_ticks,
    house_style,
    load_examples,
    new_figure,
    save_figure,
)
from foreground_images import ForegroundImages, patch_foreground
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from measured_models import Subject, check_image_flags, each_model, image_set_name, open_images
from torch import Tensor
from torch.nn.functional import interpolate
from vote_statistics import LEVELS, vote_levels

from last_vit.data.imagenet_layout import find_annotation_folder, find_split_folder
from last_vit.dense import dense_forward
from last_vit.evaluation import eval_transform, naming
from last_vit.layer_tokens import layer_tokens
from last_vit.metrics.patch_norms import token_norms
from last_vit.models import ModelArgument, TrainedModel, parse_model_arguments
from last_vit.patch_scores import patch_score, peak_index
from last_vit.pooling import last_select, vote_count
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import select_device

# what lies under a best patch -> colour and words
_MARKS = {
    1: (HIT, "best patch, on an object"),
    0: (MISS, "best patch, beside"),
    255: ("#b0b0b0", "best patch, object unknown"),
}


class ScoreView(NamedTuple):
    """One model in compare_models.py's picture."""

    titles: tuple[str, str]  # of its score column and of its vote column
    images: ExampleImages
    scores: Tensor  # [M, h, w]
    votes: Tensor  # [M, h, w]
    peaks_xy: Tensor  # [M, 2], centre of the best patch, pixels of the pictures
    peaks_on: Tensor  # uint8 [M], what lies there: 1 object, 0 background, 255 unknown


class VoteView(NamedTuple):
    """One model in visualize_votes.py's picture."""

    title: str
    images: ExampleImages
    votes: Tensor  # long [M, h, w]
    above: Tensor  # bool [M, L, h, w], the patches above each of `LEVELS`
    captions: list[list[str]]  # [M][L + 1]: how much of each map is object, where that is known


class NormsOnImages(NamedTuple):
    """One model in visualize_norms.py's second picture; patches from `cutoff` on are framed."""

    name: str
    images: ExampleImages
    scores: Tensor  # [M, h, w]
    norms: Tensor  # [M, h, w]
    captions: list[str]
    cutoff: float


def compare(args: argparse.Namespace) -> None:
    """The command compare_models.py."""
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
        views.append(view_scores(argument.name, trained, images, chosen, device))
    save_figure(draw_scores(views), args.figure)
    print(f"{len(chosen)} of {len(shown)} images of {image_set_name(args)}")


def show_votes(args: argparse.Namespace) -> None:
    """The command visualize_votes.py."""
    device, views = select_device(args.device), []
    for argument, trained, images in each_model(args, device):
        chosen = choose_images(len(images), args.num_images, args.seed, "--num-images")
        views.append(view_votes(argument, trained, images, chosen, device))
    save_figure(draw_votes(views), args.figure)
    print(f"{len(chosen)} of the {len(images)} images of {image_set_name(args)}")


def view_scores(
    name: str, trained: TrainedModel, images: ForegroundImages, chosen: Sequence[int], device: torch.device
) -> ScoreView:
    """Scores and votes of a model on chosen images, which have the transform of its preprocessing."""
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
    return ScoreView(
        titles=(f"{name}\npatch score", f"{name}\nvotes, K = {selection.top_k}"),
        images=examples,
        scores=score.unflatten(1, output.grid_hw),
        votes=votes.unflatten(1, output.grid_hw),
        peaks_xy=peaks_xy,
        peaks_on=examples.foregrounds[torch.arange(len(chosen)), row, column],
    )


def view_votes(
    argument: ModelArgument,
    trained: TrainedModel,
    images: ForegroundImages,
    chosen: Sequence[int],
    device: torch.device,
) -> VoteView:
    """Votes of a model, on `device`, on chosen images; a K above the number of patches is an error that names both."""
    examples, pool = load_examples(images, chosen, trained.preprocessing), trained.selection()
    with naming(argument), torch.inference_mode():
        output = dense_forward(trained.model, examples.inputs.to(device))
        topk_idx = last_select(output.patch_tokens, pool.top_k, pool.sigma, pool.variant)
    votes = vote_count(topk_idx, output.patch_tokens.shape[1]).cpu()
    above = vote_levels(votes)
    is_foreground, is_known = patch_foreground(examples.foregrounds, output.grid_hw)
    known = torch.cat([above.long(), votes[:, None]], dim=1) * is_known[:, None]
    shares = zip((known * is_foreground[:, None]).sum(dim=2).tolist(), known.sum(dim=2).tolist(), strict=True)
    own = "" if trained.pooling["pool"] == "last" else " (the model is not pooled with LaSt)"
    return VoteView(
        title=f"{argument.name}: votes, K = {pool.top_k}{own}",
        images=examples,
        votes=votes.unflatten(1, output.grid_hw),
        above=above.unflatten(2, output.grid_hw),
        captions=[
            [f"object {100 * part / whole:.0f} %" if whole else "" for part, whole in zip(inside, both, strict=True)]
            for inside, both in shares
        ],
    )


def view_norms(subject: Subject, chosen: Sequence[int], cutoff: float) -> NormsOnImages:
    """Scores, and norms before the final norm, of a model on chosen images."""
    _, argument, trained, images, device = subject
    examples = load_examples(images, chosen, trained.preprocessing)
    with torch.inference_mode():
        tokens = layer_tokens(trained.model, examples.inputs.to(device))
        score = patch_score(tokens.output.patch_tokens, tokens.output.global_token).cpu()
        norms = token_norms(tokens.layers[-1]).cpu()
    grid_hw = tokens.output.grid_hw
    captions = []
    for row, front, known in zip(norms, *patch_foreground(examples.foregrounds, grid_hw), strict=True):
        caption = f"{row.min():.3g} to {row.max():.3g}"
        if (front & known).any() and (~front & known).any():
            caption += f", fg / bg {row[front & known].mean() / row[~front & known].mean().clamp_min(1e-12):.2f}"
        captions.append(caption)
    maps = (values.unflatten(1, grid_hw) for values in (score, norms))
    return NormsOnImages(argument.name, examples, *maps, captions, cutoff)


def draw_scores(views: Sequence[ScoreView]) -> Figure:
    """Per model the patch score with the best patch marked, and the votes, over a grey image."""
    inches = 1.7  # side of one panel
    figure, axes = new_figure(len(views[0].scores), 1 + 2 * len(views), inches, inches)
    figure.set_layout_engine("compressed", w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    for row, panels in enumerate(axes):
        draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
        for column, view in enumerate(views):
            score, votes = panels[1 + 2 * column : 3 + 2 * column]
            _draw_over_grey(score, view.images, row, view.scores[row], float(view.scores[row].min()))
            color, _ = _MARKS[int(view.peaks_on[row])]
            look = {"markersize": 7, "markerfacecolor": color, "markeredgecolor": "black", "markeredgewidth": 1.2}
            score.plot(*view.peaks_xy[row].tolist(), "o", **look)
            _draw_over_grey(votes, view.images, row, view.votes[row], 0.0)
        hide_ticks(panels)
    found = {int(value) for view in views for value in view.peaks_on}
    with house_style():
        titles = ["image and object" if found - {255} else "image", *(title for view in views for title in view.titles)]
        for panel, title in zip(axes[0], titles, strict=True):
            panel.set_title(title, fontsize=9)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor="black", markersize=6, label=label)
            for value, (color, label) in _MARKS.items()
            if value in found
        ]
        levels = ((0.05, "low"), (0.95, "high"))
        handles += [Patch(color=colormaps[COLORMAP](level), label=label) for level, label in levels]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4)
    return figure


def draw_votes(views: Sequence[VoteView]) -> Figure:
    """The image, then per model one column per level and one with the votes."""
    per_model = len(LEVELS) + 1
    figure, axes = new_figure(len(views[0].votes), 1 + per_model * len(views), width=1.35, height=1.5)
    with house_style():
        for row, panels in enumerate(axes):
            hide_ticks(panels)
            draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
            for index, view in enumerate(views):
                group = panels[1 + per_model * index : 1 + per_model * (index + 1)]
                picture = view.images.pictures[row]
                side = len(picture)
                for panel, mask in zip(group, view.above[row], strict=False):
                    shown = interpolate(mask[None, None].float(), size=(side, side), mode="nearest")[0, 0].numpy()
                    show_selected(panel, picture, shown)
                extent = (0, side, side, 0)
                group[-1].imshow(view.votes[row].numpy(), cmap=COLORMAP, vmin=0, interpolation="nearest", extent=extent)
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


def draw_norms_on_images(views: Sequence[NormsOnImages]) -> Figure:
    """The image, and per model its patch score and its norms with their ranges."""
    figure, axes = new_figure(len(views[0].scores), 1 + 2 * len(views), width=1.75, height=1.95)
    for row, panels in enumerate(axes):
        hide_ticks(panels)
        draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
        for index, view in enumerate(views):
            score, norm = panels[1 + 2 * index : 3 + 2 * index]
            for panel, values in ((score, view.scores[row]), (norm, view.norms[row])):
                height, width = values.shape
                panel.imshow(values.numpy(), cmap=COLORMAP, extent=(0, width, height, 0), aspect=width / height)
            score.set_xlabel(f"{view.scores[row].min():.2f} to {view.scores[row].max():.2f}", fontsize=7)
            for y, x in (view.norms[row] >= view.cutoff).nonzero().tolist():
                look = {"fill": False, "edgecolor": "#56B4E9", "linewidth": 1.2}
                norm.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, **look))
            norm.set_xlabel(view.captions[row], fontsize=7)
    titles = ["image", *(f"{view.name}\n{what}" for view in views for what in ("patch score", "norm"))]
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    return figure


def show_selected(axes: Axes, picture: np.ndarray, shown: np.ndarray) -> None:
    """The picture [S, S, 3], dark and grey where `shown` [S, S] is 0 and not 1, whose rim is drawn for dark images."""
    side, inside = len(picture), shown[..., None]
    dimmed = 0.35 * picture.mean(axis=2, keepdims=True)
    axes.imshow(inside * picture + (1 - inside) * dimmed, extent=(0, side, side, 0))
    draw_rim(axes, shown, HIT, 0.7)
    axes.set(xlim=(0, side), ylim=(side, 0))


def _draw_over_grey(axes: Axes, images: ExampleImages, row: int, values: Tensor, lowest: float) -> None:
    """A map over the image without its colours, so that the map has them to itself."""
    picture = images.pictures[row].mean(axis=2, keepdims=True).repeat(3, axis=2)
    draw_picture(axes, picture, images.foregrounds[row])
    highest, side = max(float(values.max()), lowest + 1e-12), len(picture)
    axes.imshow(values.numpy(), cmap=COLORMAP, alpha=0.7, vmin=lowest, vmax=highest, extent=(0, side, side, 0))
