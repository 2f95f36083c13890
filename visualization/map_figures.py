"""The images that a figure shows, what models make of them, and both drawn: images in rows, maps of patches in columns.

Letters: M images, S the crop's side in pixels, N = h x w patches in row-major order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from figure_style import COLORMAP, hide_ticks, new_figure
from foreground_images import ForegroundImages, to_pixels
from layer_tokens import layer_tokens
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from patch_norms import token_norms
from torch import Tensor, nn

from last_vit.patch_scores import patch_score, peak_index
from last_vit.pooling import LaStPool, last_select, vote_count
from last_vit.preprocessing import Preprocessing

HIT, MISS, BOX = "#3ddc84", "#ff4d4d", "#ffffff"
# what lies under a best patch -> its mark, colour and words
_MARKS = {
    1: ("o", HIT, "best patch, on an object"),
    0: ("D", MISS, "best patch, beside"),
    255: ("s", BOX, "best patch, object unknown"),
}
_PANEL, _CAPTION = 1.7, 0.2  # inches
_BATCH_SIZE = 32


class ExampleImages(NamedTuple):
    """Chosen images as one model takes them."""

    inputs: Tensor  # float32 [M, 3, S, S], normalised
    foregrounds: Tensor  # uint8 [M, S, S], as `ForegroundImages` gives them
    pictures: Tensor  # float32 [M, S, S, 3] in [0, 1], the inputs without their normalisation


class PatchMaps(NamedTuple):
    """What one model makes of images."""

    grid_hw: tuple[int, int]
    tokens: Tensor  # [M, N, D], after the final norm
    score: Tensor  # float32 [M, N], the cosine to the token that the model is pooled with
    votes: Tensor  # long [M, N], of a selection
    norms: Tensor  # float32 [M, N], before the final norm


def choose_images(num_images: int, num_chosen: int | None, seed: int, flag: str) -> list[int]:
    """Indices of the images that a figure shows, ascending: the same for every model of one command.

    Without `num_chosen` 6 are shown, or all where there are fewer; more than there are is an error that names `flag`.
    """
    if num_chosen is None:
        num_chosen = min(6, num_images)
    if not 0 <= num_chosen <= num_images:
        raise ValueError(f"{flag} must be in [0, {num_images}] (images), got {num_chosen}")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:num_chosen].sort().values.tolist()


def find_image(images: ForegroundImages, name: str) -> int:
    """The one image whose path ends in `name`."""
    found = [index for index, path in enumerate(images.image_paths) if path.match(name)]
    if len(found) != 1:
        raise ValueError(f"--only {name} must be one of the {len(images)} images of {images.folder}, is {len(found)}")
    return found[0]


def read_images(
    images: ForegroundImages | Sequence[dict[str, Any]], chosen: Sequence[int], preprocessing: Preprocessing
) -> ExampleImages:
    """The chosen images, at least one; `images` have the transform of `preprocessing`."""
    samples = [images[index] for index in chosen]
    inputs, foregrounds = (torch.stack([sample[key] for sample in samples]) for key in ("image", "foreground"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ExampleImages(inputs, foregrounds, (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1))


def read_maps(model: nn.Module, images: Tensor, selection: LaStPool) -> PatchMaps:
    """One pass over images [M, 3, S, S]; of a K above N, which is another model's, all patches vote."""
    tokens = layer_tokens(model, images)
    output, num_patches = tokens.output, tokens.output.patch_tokens.shape[1]
    top_k = min(selection.top_k, num_patches)
    topk_idx = last_select(output.patch_tokens, top_k, selection.sigma, selection.variant)
    score = patch_score(output.patch_tokens, output.global_token)
    votes, norms = vote_count(topk_idx, num_patches), token_norms(tokens.layers[-1])
    return PatchMaps(output.grid_hw, output.patch_tokens, score, votes, norms)


@torch.inference_mode()
def read_examples(model: nn.Module, examples: ExampleImages, selection: LaStPool, device: torch.device) -> PatchMaps:
    """The maps of a model, on `device`, on the CPU."""
    parts = [read_maps(model, inputs.to(device), selection) for inputs in examples.inputs.split(_BATCH_SIZE)]
    _, *values = zip(*parts, strict=True)
    return PatchMaps(parts[0].grid_hw, *(torch.cat(each).cpu() for each in values))


class Column(NamedTuple):
    """One column of a model: a map or a picture per image."""

    title: str
    values: Tensor  # [M, h, w], or colours [M, h, w, 3] in [0, 1]
    captions: Sequence[str]  # [M], below
    lowest: float | None = None  # of the map's colours; None is each map's own
    draw_on: Callable[[Axes, int], None] = lambda axes, image: None  # the rest of an image's panel


class ModelMaps(NamedTuple):
    """One model in a figure."""

    name: str
    examples: ExampleImages
    columns: Sequence[Column]


def draw_maps(views: Sequence[ModelMaps]) -> Figure:
    """A row per image: the image with the outline of its objects, and per model its columns, below its name."""
    figure, axes = _draw_rows([(views, image) for image in range(len(views[0].examples.inputs))], header=0.7)
    place = {"xycoords": "axes fraction", "xytext": (0, 18), "textcoords": "offset points"}
    first = 1
    for view in views:
        # over all its columns, without widening the first one
        name = axes[0, first].annotate(view.name, (0, 1), **place, fontsize=10, fontweight="bold")
        name.set_in_layout(False)
        first += len(view.columns)
    return figure


def draw_models(views: Sequence[ModelMaps], image: int, title: str) -> Figure:
    """A row per model, of one image as the model sees it and its columns."""
    figure, axes = _draw_rows([([view], image) for view in views], header=0.3)
    axes[0, 0].set_title(title, fontsize=8, fontweight="normal")
    for panel, view in zip(axes[:, 0], views, strict=True):
        panel.set_ylabel(view.name, fontsize=9, fontweight="bold")
        panel.set_xlabel(f"{len(view.examples.foregrounds[image])} px", fontsize=8)
    return figure


def _draw_rows(rows: Sequence[tuple[Sequence[ModelMaps], int]], header: float) -> tuple[Figure, np.ndarray]:
    """A row of panels for models and an image: the image, then every column of every model; `header` is in inches."""
    columns = [column for view in rows[0][0] for column in view.columns]
    has_captions = any(column.captions[image] for column in columns for _, image in rows[:-1])
    figure, axes = new_figure(len(rows), 1 + len(columns), _PANEL, _PANEL + _CAPTION * has_captions)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + header)
    figure.set_layout_engine("compressed", w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    for panels, (views, image) in zip(axes, rows, strict=True):
        hide_ticks(panels)
        examples = views[0].examples
        _draw(panels[0], examples.pictures[image])
        draw_outline(panels[0], examples.foregrounds[image])
        shown = ((view, column) for view in views for column in view.columns)
        for panel, (view, column) in zip(panels[1:], shown, strict=True):
            _draw(panel, column.values[image], len(view.examples.pictures[image]), column.lowest)
            column.draw_on(panel, image)
            panel.set_xlabel(column.captions[image], fontsize=8, labelpad=3)
    for panel, title in zip(axes[0], ["image", *(f"\n{column.title}" for column in columns)], strict=True):
        panel.set_title(title, fontsize=8, fontweight="normal")
    return figure, axes


def _draw(axes: Axes, values: Tensor, side: int | None = None, lowest: float | None = None) -> None:
    """A picture [S, S, 3] or a map [h, w], in the crop's pixels, beyond which nothing widens the panel."""
    side = side or len(values)
    axes.imshow(values.numpy(), extent=(0, side, side, 0), cmap=COLORMAP, vmin=lowest)
    axes.set(xlim=(0, side), ylim=(side, 0))


def draw_outline(axes: Axes, foreground: Tensor) -> None:
    """The outline of objects, where `foreground`, uint8 [S, S], is 1, if any."""
    is_object = foreground == 1
    if is_object.any():
        for color, width in (("black", 2.2), (BOX, 1.0)):
            draw_rim(axes, is_object, color, width)


def draw_rim(axes: Axes, mask: Tensor, color: str, width: float) -> None:
    """Outline a mask, bool [S, S] in the crop's pixels, at the image's border too."""
    centres = np.arange(-1, len(mask) + 1) + 0.5
    axes.contour(centres, centres, np.pad(mask.float(), 1), levels=[0.5], colors=color, linewidths=width)


def among_dimmed(examples: ExampleImages, kept: Tensor, shown: Tensor) -> Tensor:
    """What is shown of the kept patches, and the rest of the pictures, dark and grey: float32 [M, S, S, 3].

    `kept` is bool [M, h, w], `shown` pictures [M, S, S, 3].
    """
    dimmed = 0.35 * examples.pictures.mean(dim=3, keepdim=True)
    return torch.where(to_pixels(kept, shown.shape[1:3])[..., None], shown, dimmed)


def best_patches(maps: PatchMaps, foregrounds: Tensor) -> tuple[Tensor, Tensor]:
    """Of every image's best patch, its centre in the crop's pixels [M, 2], and what lies there, uint8 [M]."""
    peak, (height, width), side = peak_index(maps.score), maps.grid_hw, foregrounds.shape[2]
    centre_xy = torch.stack([(peak % width + 0.5) / width, (peak // width + 0.5) / height], dim=1) * side
    column, row = centre_xy.long().unbind(dim=1)
    return centre_xy, foregrounds[torch.arange(len(peak)), row, column]


def score_column(maps: PatchMaps, examples: ExampleImages, captions: Sequence[str] | None = None) -> Column:
    """Patch scores, the objects outlined and the best patch marked by what lies there; below, by default, the range."""
    captions = captions or [f"{row.min():.2f} to {row.max():.2f}" for row in maps.score]
    centre_xy, found = best_patches(maps, examples.foregrounds)

    def draw_on(axes: Axes, image: int) -> None:
        draw_outline(axes, examples.foregrounds[image])
        marker, color, words = _MARKS[int(found[image])]
        look = {"markersize": 7, "color": color, "markeredgecolor": "black", "clip_on": False, "label": words}
        axes.plot(*centre_xy[image].tolist(), marker, **look)

    return Column("patch score", maps.score.unflatten(1, maps.grid_hw), captions, draw_on=draw_on)


def add_key(figure: Figure) -> None:
    """What the colours and the marks of best patches say, below the panels."""
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 0.8)
    bar = figure.colorbar(
        ScalarMappable(cmap=COLORMAP), ax=figure.axes, location="bottom", shrink=0.25, aspect=30, pad=0.01
    )
    bar.set_ticks([0, 1], labels=["lowest (votes: 0)", "highest of each map"], fontsize=8)
    marks = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    handles = [marks[words] for _, _, words in _MARKS.values() if words in marks]
    key = {"ncols": len(handles), "handletextpad": 0.4, "markerscale": 6 / 7}
    figure.legend(handles=handles, loc="outside lower center", **key)
