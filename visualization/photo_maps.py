"""What explore.py does: every model's maps of photos, and a picture per photo.

Letters: M photos, S the crop's side in pixels, h x w patches.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from figure_style import COLORMAP, hide_ticks, house_style, load_examples, new_figure, save_figure
from layer_tokens import layer_tokens
from matplotlib.figure import Figure
from patch_norms import token_norms
from patch_pca import fit_patch_pca
from PIL import Image
from torch import Tensor

from last_vit.data.image_files import load_photos
from last_vit.evaluation import eval_transform
from last_vit.models import ModelArgument, TrainedModel, naming, parse_model_arguments
from last_vit.patch_scores import patch_score
from last_vit.pooling import last_select, vote_count
from last_vit.results import result_name
from last_vit.runtime import select_device

BATCH_SIZE = 32


class PhotoMap(NamedTuple):
    """One column of a model's row."""

    title: str
    values: Tensor  # [M, h, w], or colours [M, h, w, 3] in [0, 1]
    captions: Sequence[str]  # one per photo
    lowest: float | None = None  # of the colours; None is each map's own


class PhotoView(NamedTuple):
    """One model's row in the picture of every photo."""

    name: str
    pictures: np.ndarray  # [M, S, S, 3], what the model sees
    maps: Sequence[PhotoMap]


def run(args: argparse.Namespace) -> None:
    """Every model on all photos; what is wrong with a photo shows before a model is loaded."""
    arguments, device = parse_model_arguments(args.model), select_device(args.device)
    photos = load_photos(args.image)
    views = []
    for argument in arguments:
        trained = argument.load(args.image_size, args.resize)
        with naming(argument):
            views.append(view_photos(argument, trained, photos, device))
    for index, name in enumerate(photos):
        save_figure(draw_photo(name, views, index), args.out / f"{result_name(name)}.png")


@torch.inference_mode()
def view_photos(
    argument: ModelArgument, trained: TrainedModel, photos: Mapping[str, Image.Image], device: torch.device
) -> PhotoView:
    """The maps of a model from one pass over the photos; a K above the number of patches is a ValueError."""
    transform, side = eval_transform(trained.preprocessing), trained.preprocessing.crop
    nothing_known = torch.full((side, side), 255, dtype=torch.uint8)
    samples = [{"image": transform(photo), "foreground": nothing_known} for photo in photos.values()]
    examples, selection = load_examples(samples, range(len(samples)), trained.preprocessing), trained.selection()
    trained.model.to(device)
    found = []
    for inputs in examples.inputs.split(BATCH_SIZE):
        tokens = layer_tokens(trained.model, inputs.to(device))
        patch_tokens = tokens.output.patch_tokens
        topk_idx = last_select(patch_tokens, selection.top_k, selection.sigma, selection.variant)
        score, votes = (
            patch_score(patch_tokens, tokens.output.global_token),
            vote_count(topk_idx, patch_tokens.shape[1]),
        )
        found.append([each.cpu() for each in (patch_tokens, score, votes, token_norms(tokens.layers[-1]))])
    grid_hw, (patch_tokens, score, votes, norms) = tokens.output.grid_hw, map(torch.cat, zip(*found, strict=True))
    fits = [fit_patch_pca(each) for each in patch_tokens]
    colors = torch.stack([fit.rgb(each) for fit, each in zip(fits, patch_tokens, strict=True)])
    shares = [" + ".join(f"{100 * share:.0f}" for share in fit.explained) for fit in fits]
    maps = [
        PhotoMap("patch score", score, [f"{row.min():.2f} to {row.max():.2f}" for row in score]),
        PhotoMap("votes", votes, [f"K = {selection.top_k}, at most {row.max()}" for row in votes], lowest=0),
        PhotoMap("norms", norms, [f"{row.min():.3g} to {row.max():.3g}" for row in norms]),
        PhotoMap("principal components", colors, [f"{share} % of the variance" for share in shares]),
    ]
    maps = [each._replace(values=each.values.unflatten(1, grid_hw)) for each in maps]
    return PhotoView(argument.name, examples.pictures, maps)


def draw_photo(photo_name: str, views: Sequence[PhotoView], index: int) -> Figure:
    """One photo: a row per model, of the photo and its maps with hard edges, because that is what patches are."""
    figure, axes = new_figure(len(views), 1 + len(views[0].maps), width=1.9, height=2.15)
    with house_style():
        for panels, view in zip(axes, views, strict=True):
            hide_ticks(panels)
            side = len(view.pictures[index])
            extent = (0, side, side, 0)
            panels[0].imshow(view.pictures[index], extent=extent)
            panels[0].set_ylabel(view.name, fontsize=9, fontweight="bold")
            panels[0].set_xlabel(f"{side} px", fontsize=7, labelpad=2)
            for panel, each in zip(panels[1:], view.maps, strict=True):
                values = each.values[index].numpy()
                panel.imshow(values, cmap=COLORMAP, vmin=each.lowest, interpolation="nearest", extent=extent)
                panel.set_xlabel(each.captions[index], fontsize=7, labelpad=2)
            best = view.maps[0].values[index]
            height, width = best.shape
            row, column = divmod(int(best.argmax()), width)
            place = ((column + 0.5) * side / width, (row + 0.5) * side / height)
            panels[1].plot(
                *place, "o", markersize=6, markerfacecolor="none", markeredgecolor="#56B4E9", markeredgewidth=2
            )
        for panel, title in zip(axes[0], [photo_name, *(each.title for each in views[0].maps)], strict=True):
            panel.set_title(title, fontsize=9)
    return figure
