"""What a report shows of one model: the numbers over all images, and the maps of the images in the gallery.

One pass per model. Statistics stream and keep nothing; the gallery keeps a few numbers per patch of its own images.

Letters: N = h * w patches in row-major order.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from foreground_images import patch_foreground, patch_groups
from map_figures import read_maps
from patch_norms import PatchNorms, merge_bins
from patch_pca import fit_patch_pca
from score_distribution import ScoreDistribution, auroc
from torch import Tensor, nn
from torch.nn import functional as F
from vote_statistics import VoteStatistics

from last_vit.boxes import resize_crop_box
from last_vit.dense import dense_batches
from last_vit.metrics import PointInBox, box_patch_mask
from last_vit.patch_scores import peak_index
from last_vit.pooling import LaStPool
from last_vit.preprocessing import Preprocessing

HIT_RULE = "center"
_NUM_BINS, _NUM_BARS = 40, 64


class ImageView(NamedTuple):
    """One image of the gallery as one model sees it; tensors on the CPU."""

    frame_xyxy: tuple[float, ...]  # the model's crop in shares of the image's width and height, beyond [0, 1]: padding
    box_xyxy: tuple[float, ...] | None  # in shares of the crop, not clipped; None unless exactly one object is known
    score: Tensor  # float32 [N], the patch score
    votes: Tensor  # long [N]
    norm: Tensor  # float32 [N], before the final norm
    rgb: Tensor | None  # float32 [N, 3] in [0, 1], PCA colours; None for fewer than 3 patches or channels
    is_foreground: Tensor | None  # bool [N]; None when nothing is known about objects
    best: int  # the best patch
    is_hit: bool | None  # whether its centre lies in the box; None without a box
    auroc: float | None  # of score against object, in percent; None unless the image shows object and background


class ModelMeasures(NamedTuple):
    """What one pass of one model gives.

    `metrics` are those of "point_in_box" (absent without an image of one box), "score_distribution" (absent without
    one that shows object and background), "patch_norms" and "vote_statistics". `charts` are "score": edges and two
    densities, absent as above; "norm": edges and percent of patches; "frequency": percent of the votes, h rows of w.
    """

    grid_hw: tuple[int, int]
    num_channels: int
    metrics: dict[str, dict[str, float]]
    charts: dict[str, Any]
    views: dict[int, ImageView]  # of the images of the gallery, by index


def measure_model(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    prep: Preprocessing,
    selection: LaStPool,
    chosen: set[int],
) -> ModelMeasures:
    """Run one model, on `device`, over batches of `ForegroundImages`; `chosen` are the indices of the gallery."""
    hits, scores, norms = PointInBox(prep.crop, prep.resize, HIT_RULE), ScoreDistribution(_NUM_BINS), PatchNorms()
    votes_at: VoteStatistics | None = None
    shows_both = False  # some image, object and background
    views: dict[int, ImageView] = {}
    for maps, batch in dense_batches(model, batches, device, partial(read_maps, selection=selection)):
        grid_hw, (is_foreground, is_known) = maps.grid_hw, patch_foreground(batch["foreground"], maps.grid_hw)
        votes_at = votes_at or VoteStatistics(grid_hw)
        hits.update(maps.score, batch["box_xyxy"], batch["image_hw"], grid_hw)
        scores.update(maps.score, is_foreground, is_known)
        norms.update(maps.norms, maps.score, is_foreground, is_known)
        votes_at.update(maps.votes, is_foreground, is_known)
        shows_both = shows_both or bool(patch_groups(is_foreground, is_known)[1].any())
        found = (batch["box_xyxy"], batch["image_hw"], *maps[1:], is_foreground, is_known)
        for row, index in enumerate(batch["index"].tolist()):
            if index in chosen:
                views[index] = _view(prep, grid_hw, [values[row : row + 1].cpu() for values in found])
    metrics = {"patch_norms": norms.compute(), "vote_statistics": votes_at.compute()}
    charts: dict[str, Any] = {
        "norm": _norm_bars(norms, metrics["patch_norms"]["cutoff"]),
        "frequency": (100 * votes_at.frequency()).tolist(),
    }
    if hits.count():
        metrics["point_in_box"] = hits.compute()
    if shows_both:
        metrics["score_distribution"] = scores.compute()
        names = ("edges", "foreground", "background")
        charts["score"] = {name: line.tolist() for name, line in zip(names, scores.histograms(), strict=True)}
    return ModelMeasures(grid_hw, maps.tokens.shape[2], metrics, charts, views)


def _view(prep: Preprocessing, grid_hw: tuple[int, int], found: Sequence[Tensor]) -> ImageView:
    """The view of one image from what was found of it, in a batch of one."""
    box, image_hw, patch_tokens, score, votes, norms, is_foreground, is_known = found
    height, width = image_hw[0].tolist()
    corners = torch.tensor([[0.0, 0.0, width, height]])
    x1, y1, x2, y2 = resize_crop_box(corners, image_hw, prep.resize, prep.crop)[0].tolist()  # the image on the crop
    frame = (-x1 / (x2 - x1), -y1 / (y2 - y1), (prep.crop - x1) / (x2 - x1), (prep.crop - y1) / (y2 - y1))
    best = int(peak_index(score))
    has_box = not bool(box.isnan().any())
    inside = box_patch_mask(box, image_hw, grid_hw, prep.crop, prep.resize, HIT_RULE)
    on_crop = resize_crop_box(box, image_hw, prep.resize, prep.crop)[0] / prep.crop
    groups, shows_both = patch_groups(is_foreground, is_known)
    has_pca = min(patch_tokens.shape[1:]) >= 3
    return ImageView(
        frame_xyxy=frame,
        box_xyxy=tuple(on_crop.tolist()) if has_box else None,
        score=score[0],
        votes=votes[0],
        norm=norms[0],
        rgb=fit_patch_pca(patch_tokens[0]).rgb(patch_tokens[0]) if has_pca else None,
        is_foreground=is_foreground[0] if bool(is_known.any()) else None,
        best=best,
        is_hit=bool(inside[0, best]) if has_box else None,
        auroc=100 * float(auroc(score, groups)) if shows_both else None,
    )


def _norm_bars(norms: PatchNorms, cutoff: float) -> dict[str, list[float]]:
    """The histogram's bins that hold anything, merged into at most about 64 bars of which one begins at the cut-off."""
    edges, counts = norms.histogram()
    stops = merge_bins(counts, _NUM_BARS, int(torch.searchsorted(edges, cutoff)))
    below = F.pad(counts.cumsum(dim=0), (1, 0))
    return {"edges": edges[stops].tolist(), "percent": (100 * below[stops].diff() / counts.sum()).tolist()}


def disagreement(views: Sequence[ImageView], grids_hw: Sequence[tuple[int, int]]) -> float | None:
    """1 - mean Pearson correlation of the score maps of every two models, on the part of the image that all see.

    Score maps are interpolated bilinearly at the centres of a common grid, as fine as the finest. A value in [0, 2];
    None for one model, for crops without common part, and where every pair holds a constant map.
    """
    frames = torch.tensor([view.frame_xyxy for view in views], dtype=torch.float64)
    low, high = frames[:, :2].amax(dim=0), frames[:, 2:].amin(dim=0)
    if len(views) < 2 or bool((high <= low).any()):
        return None
    rows, columns = (max(grid[axis] for grid in grids_hw) for axis in (0, 1))
    x, y = ((torch.arange(count, dtype=torch.float64) + 0.5) / count for count in (columns, rows))
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2) * (high - low) + low  # [rows, columns, 2]
    samples = []
    for view, frame, grid_hw in zip(views, frames, grids_hw, strict=True):
        on_crop = (place - frame[:2]) / (frame[2:] - frame[:2]) * 2 - 1
        score = view.score.double().unflatten(0, grid_hw)
        samples.append(F.grid_sample(score[None, None], on_crop[None], padding_mode="border", align_corners=False))
    values = torch.cat(samples).flatten(1)
    centred = values - values.mean(dim=1, keepdim=True)
    is_flat = centred.abs().amax(dim=1) <= 1e-6 * values.abs().amax(dim=1)
    values = values[~is_flat]
    if len(values) < 2:
        return None
    rows, columns = torch.triu_indices(len(values), len(values), 1)
    return 1 - float(torch.corrcoef(values)[rows, columns].mean())
