"""Images in rows, maps of their patches in columns, model beside model: scores, votes and norms (paper figure 5).

Letters: M images, S the crop's side in pixels, L levels of votes, h x w patches.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import figure_style as style
import numpy as np
import torch
from foreground_images import ForegroundImages, patch_foreground
from layer_tokens import layer_tokens
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from measured_models import Subject, check_image_flags, each_model, image_set_name, open_images, vote_selections
from patch_norms import token_norms
from torch import Tensor
from torch.nn.functional import interpolate
from vote_statistics import LEVELS, vote_levels

from last_vit.data.imagenet_layout import find_annotation_folder, find_split_folder
from last_vit.dense import dense_forward
from last_vit.evaluation import eval_transform
from last_vit.models import ModelArgument, TrainedModel, naming, parse_model_arguments
from last_vit.patch_scores import patch_score, peak_index
from last_vit.pooling import LaStPool, last_select, resolve_top_k, vote_count
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import select_device

# what lies under a best patch -> its mark, colour and words
_MARKS = {
    1: ("o", style.HIT, "best patch, on an object"),
    0: ("D", style.MISS, "best patch, beside"),
    255: ("s", style.BOX, "best patch, object unknown"),
}


class ScoreView(NamedTuple):
    """One model in compare_models.py's picture."""

    name: str
    titles: tuple[str, str]  # of its score column and of its vote column
    counts: tuple[str, str]  # below them, over all rows; empty where nothing is known about objects
    images: style.ExampleImages
    scores: Tensor  # [M, h, w]
    votes: Tensor  # [M, h, w]
    peaks_xy: Tensor  # [M, 2], centre of the best patch, pixels of the pictures
    peaks_on: Tensor  # uint8 [M], what lies there: 1 object, 0 background, 255 unknown


class VoteView(NamedTuple):
    """One model in visualize_votes.py's picture."""

    title: str
    images: style.ExampleImages
    votes: Tensor  # long [M, h, w]
    above: Tensor  # bool [M, L, h, w], the patches above each of `LEVELS`
    captions: list[list[str]]  # [M][L + 1]: how much of each map is object, where that is known


class NormsOnImages(NamedTuple):
    """One model in visualize_norms.py's second picture; patches from `cutoff` on are framed."""

    name: str
    images: style.ExampleImages
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
    chosen = [shown[place] for place in style.choose_images(len(shown), args.num_images, args.seed, "--num-images")]
    if args.only:
        chosen = [style.find_image(images, shown, name) for name in args.only]
    models = [argument.load(args.image_size, args.resize) for argument in arguments]
    views = []
    for argument, trained, selection in zip(arguments, models, vote_selections(models), strict=True):
        images.transform = eval_transform(trained.preprocessing)
        views.append(view_scores(argument.name, trained, images, chosen, device, selection))
    style.save_figure(draw_scores(views), args.figure)
    print(f"{len(chosen)} of {len(shown)} images of {image_set_name(args)}")


def show_votes(args: argparse.Namespace) -> None:
    """The command visualize_votes.py."""
    device, views = select_device(args.device), []
    for argument, trained, images in each_model(args, device):
        chosen = style.choose_images(len(images), args.num_images, args.seed, "--num-images")
        views.append(view_votes(argument, trained, images, chosen, device))
    style.save_figure(draw_votes(views), args.figure)
    print(f"{len(chosen)} of the {len(images)} images of {image_set_name(args)}")


def view_scores(
    name: str,
    trained: TrainedModel,
    images: ForegroundImages,
    chosen: Sequence[int],
    device: torch.device,
    selection: LaStPool,
) -> ScoreView:
    """Scores and votes of a model on chosen images, which have the transform of its preprocessing."""
    examples = style.load_examples(images, chosen, trained.preprocessing)
    with torch.inference_mode():
        output = dense_forward(trained.model.to(device), examples.inputs.to(device))
        score = patch_score(output.patch_tokens, output.global_token).cpu()
        num_patches = score.shape[1]
        k = min(selection.top_k, num_patches)  # another model's K may be more
        topk_idx = last_select(output.patch_tokens, k, selection.sigma, selection.variant)
        votes = vote_count(topk_idx, num_patches).cpu()
    peak, (height, width) = peak_index(score), output.grid_hw
    peaks_xy = torch.stack([(peak % width + 0.5) / width, (peak // width + 0.5) / height], dim=1)
    peaks_xy *= trained.preprocessing.crop
    column, row = peaks_xy.long().unbind(dim=1)
    peaks_on = examples.foregrounds[torch.arange(len(chosen)), row, column]
    is_foreground, is_known = patch_foreground(examples.foregrounds, output.grid_hw)
    counts = ("", "")
    if is_foreground.any():
        inside, known = (float((votes * mask).sum()) for mask in (is_foreground, is_known))
        area = 100 * float(is_foreground.sum() / is_known.sum())
        best = f"on an object: {int((peaks_on == 1).sum())} of {int((peaks_on != 255).sum())}"
        counts = (best, f"{100 * inside / known:.0f} % on objects,\n{area:.0f} % of the patches")
    return ScoreView(
        name=name,
        titles=("patch score", f"votes, K = {resolve_top_k(k, num_patches)} of {num_patches}"),
        counts=counts,
        images=examples,
        scores=score.unflatten(1, output.grid_hw),
        votes=votes.unflatten(1, output.grid_hw),
        peaks_xy=peaks_xy,
        peaks_on=peaks_on,
    )


def view_votes(
    argument: ModelArgument,
    trained: TrainedModel,
    images: ForegroundImages,
    chosen: Sequence[int],
    device: torch.device,
) -> VoteView:
    """Votes of a model, on `device`, on chosen images; a K above the number of patches is an error that names both."""
    examples, pool = style.load_examples(images, chosen, trained.preprocessing), trained.selection()
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
    examples = style.load_examples(images, chosen, trained.preprocessing)
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
    """The image, and per model its patch score with the best patch marked, and its votes."""
    inches = 1.7  # side of one panel
    figure, axes = style.new_figure(len(views[0].scores), 1 + 2 * len(views), inches, inches)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 1.5)  # for titles, counts, bar and legend
    figure.set_layout_engine("compressed", w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    for row, panels in enumerate(axes):
        style.draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
        for column, view in enumerate(views):
            score, votes = panels[1 + 2 * column : 3 + 2 * column]
            style.draw_picture(score, view.scores[row].numpy(), view.images.foregrounds[row])
            marker, color, _ = _MARKS[int(view.peaks_on[row])]
            look = {"markersize": 7, "color": color, "markeredgecolor": "black", "clip_on": False}
            score.plot(*view.peaks_xy[row].tolist(), marker, **look)
            style.draw_picture(votes, view.votes[row].numpy(), view.images.foregrounds[row], lowest=0)
        style.hide_ticks(panels)
    found = {int(value) for view in views for value in view.peaks_on}
    with style.house_style():
        titles = ["image", *(f"\n{title}" for view in views for title in view.titles)]
        for panel, title in zip(axes[0], titles, strict=True):
            panel.set_title(title, fontsize=8, fontweight="normal")
        for panel, words in zip(axes[-1][1:], [words for view in views for words in view.counts], strict=True):
            panel.set_xlabel(words, fontsize=8, labelpad=3)
        for index, view in enumerate(views):
            _title_columns(axes[0][1 + 2 * index], view.name, height=18, fontsize=10)
        handles = [
            Line2D([], [], marker=marker, linestyle="", color=color, markeredgecolor="black", markersize=6, label=label)
            for value, (marker, color, label) in _MARKS.items()
            if value in found
        ]
        colors = ScalarMappable(cmap=style.COLORMAP)
        bar = figure.colorbar(colors, ax=axes, location="bottom", shrink=0.25, aspect=30, pad=0.01)
        bar.set_ticks([0, 1], labels=["lowest (votes: 0)", "highest of each map"], fontsize=8)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4)
    return figure


def draw_votes(views: Sequence[VoteView]) -> Figure:
    """The image, then per model one column per level and one with the votes."""
    per_model = len(LEVELS) + 1
    figure, axes = style.new_figure(len(views[0].votes), 1 + per_model * len(views), width=1.35, height=1.5)
    with style.house_style():
        for row, panels in enumerate(axes):
            style.hide_ticks(panels)
            style.draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
            for index, view in enumerate(views):
                group = panels[1 + per_model * index : 1 + per_model * (index + 1)]
                side = len(view.images.pictures[row])
                masks = interpolate(view.above[row, None].float(), size=(side, side), mode="nearest")[0].numpy()
                for panel, shown in zip(group, masks, strict=False):
                    show_selected(panel, view.images.pictures[row], shown)
                extent = (0, side, side, 0)
                group[-1].imshow(
                    view.votes[row].numpy(), cmap=style.COLORMAP, vmin=0, interpolation="nearest", extent=extent
                )
                for panel, caption in zip(group, view.captions[row], strict=True):
                    panel.set_xlabel(caption, fontsize=7, labelpad=2)
        axes[0][0].set_title("image")
        for index, view in enumerate(views):
            group = axes[0][1 + per_model * index :]
            for panel, level in zip(group, LEVELS, strict=False):
                panel.set_title(f"\n> {100 * level:g} %")
            group[per_model - 1].set_title("votes")
            _title_columns(group[0], view.title, height=20, fontsize=11)
    return figure


def draw_norms_on_images(views: Sequence[NormsOnImages]) -> Figure:
    """The image, and per model its patch score and its norms with their ranges."""
    figure, axes = style.new_figure(len(views[0].scores), 1 + 2 * len(views), width=1.75, height=1.95)
    for row, panels in enumerate(axes):
        style.hide_ticks(panels)
        style.draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
        for index, view in enumerate(views):
            score, norm = panels[1 + 2 * index : 3 + 2 * index]
            for panel, values in ((score, view.scores[row]), (norm, view.norms[row])):
                height, width = values.shape
                panel.imshow(values.numpy(), cmap=style.COLORMAP, extent=(0, width, height, 0), aspect=width / height)
            score.set_xlabel(f"{view.scores[row].min():.2f} to {view.scores[row].max():.2f}", fontsize=7)
            for y, x in (view.norms[row] >= view.cutoff).nonzero().tolist():
                look = {"fill": False, "edgecolor": "#56B4E9", "linewidth": 1.2}
                norm.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, **look))
            norm.set_xlabel(view.captions[row], fontsize=7)
    titles = ["image", *(f"{view.name}\n{what}" for view in views for what in ("patch score", "norm"))]
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    return figure


def _title_columns(first: Axes, title: str, height: int, fontsize: int) -> None:
    """Write over all columns of a model, without widening the first one."""
    place = {"xycoords": "axes fraction", "xytext": (0, height), "textcoords": "offset points"}
    first.annotate(title, (0, 1), **place, fontsize=fontsize, fontweight="bold").set_in_layout(False)


def show_selected(axes: Axes, picture: np.ndarray, shown: np.ndarray) -> None:
    """The picture [S, S, 3], dark and grey where `shown` [S, S] is 0 and not 1, whose rim is drawn for dark images."""
    side, inside = len(picture), shown[..., None]
    dimmed = 0.35 * picture.mean(axis=2, keepdims=True)
    axes.imshow(inside * picture + (1 - inside) * dimmed, extent=(0, side, side, 0))
    style.draw_rim(axes, shown, style.HIT, 0.7)
    axes.set(xlim=(0, side), ylim=(side, 0))
