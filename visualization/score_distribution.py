"""Scores of object patches against background patches: how well a patch score separates them (paper figure 2a).

Scores are brought to [0, 1] image by image (min-max over the known patches), so that images of different level can be
pooled. What depends on the order within an image (shares among the best patches, AUROC per image) is exact and takes
ties in expectation, as if tied patches were ordered at random. Only known patches count, and everything is over the
images that show both object and background; the others are counted.

Letters: B images, N patches. A pair of groups is (background, object).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from figure_style import BACKGROUND, FOREGROUND, finish_panels, model_panels, save_figure
from foreground_images import patch_foreground, patch_groups
from matplotlib.figure import Figure
from measured_models import Measurement, Subject, measure_models
from patch_norms import count_bins
from torch import Tensor

from last_vit.dense import choose_global_token, dense_batches
from last_vit.evaluation import print_metrics, token_words
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.patch_scores import patch_score

TOP_PERCENTS = (1, 5, 10, 50)
_FINE = 100  # bins of the pooled AUROC per bin of the drawing
_DRAWN_BINS = 120
_KERNEL = np.array([1, 2, 3, 2, 1]) / 9  # the released plot's smoothing; numbers never come from it
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
    "num_constant": "scores all the same (counted)",
}


class ScoreDistribution:
    """Streaming and distributed statistics of patch scores, split by what the patches show.

    `num_bins` are those of `histograms`, over [0, 1].
    """

    def __init__(self, num_bins: int = 100) -> None:
        self.num_bins = num_bins
        self._sums = SummedTensors(
            num_images=(),
            num_not_finite=(),
            num_unknown=(),
            num_no_foreground=(),
            num_no_background=(),
            num_constant=(),
            auroc=(),
            background=(),
            background_top=(len(TOP_PERCENTS),),
            histogram=(2, num_bins * _FINE),
        )

    def update(self, score: Tensor, is_foreground: Tensor, is_known: Tensor) -> None:
        """Count one batch of scores, real [B, N], higher is more like the global token, and of `patch_foreground`."""
        groups, counts = patch_groups(is_foreground, is_known)
        num_background, num_foreground = groups.sum(dim=2).unbind(dim=1)
        groups = groups & counts[:, None, None]  # what is left out adds 0 to every sum below
        known = groups.any(dim=1)
        normalised, is_constant = min_max(score, known)
        self._sums.add(
            num_images=counts.sum(),
            num_not_finite=(~score.isfinite() & is_known).any(dim=1).sum(),
            num_unknown=((num_background + num_foreground) == 0).sum(),
            num_no_foreground=((num_background > 0) & (num_foreground == 0)).sum(),
            num_no_background=((num_background == 0) & (num_foreground > 0)).sum(),
            num_constant=(is_constant & counts).sum(),
            auroc=auroc(score, groups).sum(),
            background=(num_background.double() / known.sum(dim=1).clamp(min=1) * counts).sum(),
            background_top=_background_among_best(score, groups).sum(dim=0),
            histogram=_histogram(normalised, groups, self.num_bins * _FINE),
        )

    def compute(self) -> dict[str, float]:
        """Numbers over everything counted by all processes; shares and AUROC in percent.

        "auroc": probability that an object patch scores higher than a background patch (50 is chance), mean over
        images; "auroc_pooled": the same over the patches of all images by their normalised score, binned 100 times
        finer than `histograms` (about 0.01 off). "background_top_<p>" for p of `TOP_PERCENTS`: background's share of an
        image's best ceil(p N / 100) of N known patches, mean over images; "background_share": of all its known patches.
        "num_images" that count in all this, and the others as in `_LEFT_OUT`; a constant score is 0.5 normalised.
        ValueError when no image shows both object and background, and for a score that is NaN or infinite.
        """
        totals = self._counted()
        num_images = int(totals["num_images"])
        background, foreground = totals["histogram"]
        below = background.cumsum(dim=0) - background / 2
        pooled = (foreground @ below) / (foreground.sum() * background.sum())
        found = {"auroc": 100 * float(totals["auroc"]) / num_images, "auroc_pooled": 100 * float(pooled)}
        for percent, total in zip(TOP_PERCENTS, totals["background_top"].tolist(), strict=True):
            found[f"background_top_{percent}"] = 100 * total / num_images
        found["background_share"] = 100 * float(totals["background"]) / num_images
        return found | {name: int(totals[name]) for name in ("num_images", *_LEFT_OUT)}

    def histograms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges [num_bins + 1] from 0 to 1; densities [num_bins] of the normalised score of object, and of background.

        Every image has one patch at 0 and one at 1 (or more, tied), which show as bars there. All processes must call.
        """
        background, foreground = self._counted()["histogram"].unflatten(1, (self.num_bins, _FINE)).sum(dim=2)
        edges = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64)
        return edges, *(counts * self.num_bins / counts.sum() for counts in (foreground, background))

    def _counted(self) -> dict[str, Tensor]:
        totals = self._sums.totals()
        if totals["num_not_finite"]:
            raise ValueError(f"{int(totals['num_not_finite'])} images have scores that are NaN or infinite")
        if not totals["num_images"]:
            raise ValueError(
                "no image shows both object and background, so their scores cannot be compared: "
                f"{int(totals['num_unknown'])} images without a known patch, {int(totals['num_no_foreground'])} "
                f"without object, {int(totals['num_no_background'])} without background"
            )
        return totals


def min_max(score: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 scores in [0, 1] over each image's known patches, 0.5 in a constant map; whether it is constant [B]."""
    score = score.double()
    low = score.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
    high = score.masked_fill(~known, -torch.inf).amax(dim=1, keepdim=True)
    is_constant = high <= low
    span = torch.where(is_constant, 1.0, high - low)
    return torch.where(is_constant, 0.5, (score - low) / span), is_constant.squeeze(1)


def auroc(score: Tensor, groups: Tensor) -> Tensor:
    """Exact area under the ROC curve of every row, from ranks: float [B, N], two groups bool [B, 2, N] -> float64 [B].

    How often a patch of the second group scores higher than one of the first; 0 for rows that lack one of the two.
    """
    background, foreground = groups.unbind(dim=1)
    ranked = score.masked_fill(~background, torch.inf).sort(dim=1).values
    # pairs won, a tie as one half: the mean of how many background patches are below, and of how many not above
    below, not_above = (torch.searchsorted(ranked, score.contiguous(), right=right) for right in (False, True))
    won = ((below + not_above) * foreground).sum(dim=1).double() / 2
    return won / (background.sum(dim=1) * foreground.sum(dim=1)).clamp(min=1)


def _background_among_best(score: Tensor, groups: Tensor) -> Tensor:
    """Background's share of the best patches of every image, float64 [B, len(TOP_PERCENTS)]; ties in equal parts."""
    known = groups.any(dim=1)
    num_known = known.sum(dim=1, keepdim=True)
    percents = torch.tensor(TOP_PERCENTS, device=score.device)
    num_best = ((num_known * percents + 99) // 100).clamp(min=1)  # whole numbers: exactly ceil(p N / 100)
    score = score.double().masked_fill(~known, -torch.inf)
    limit = score.sort(dim=1, descending=True).values.gather(1, num_best - 1)[:, :, None]  # [B, P, 1]
    above = (score[:, None] > limit) & known[:, None]
    tied = (score[:, None] == limit) & known[:, None]
    background = groups[:, :1]
    room = num_best - above.sum(dim=2)
    tied_share = (tied & background).sum(dim=2) / tied.sum(dim=2).clamp(min=1).double()
    return ((above & background).sum(dim=2) + room * tied_share) / num_best


def _histogram(normalised: Tensor, groups: Tensor, num_bins: int) -> Tensor:
    """Counts of each group's scores over [0, 1], float64 [2, num_bins]; a score of 1 is in the last bin."""
    bins = (torch.where(groups.any(dim=1), normalised, 0.0) * num_bins).long().clamp(0, num_bins - 1)
    group = torch.where(groups.any(dim=1), groups[:, 1].long(), 2)
    return count_bins(group * num_bins + bins, 3 * num_bins).view(3, num_bins)[:2]


class ScoreView(NamedTuple):
    """What is drawn and printed of one model: `ScoreDistribution`'s numbers, edges [bins + 1] and densities [bins]."""

    name: str
    stats: Mapping[str, float]
    edges: np.ndarray
    foreground: np.ndarray
    background: np.ndarray


def run(args: argparse.Namespace) -> None:
    """The command visualize_patch_score_distribution.py."""
    if args.boxes is None and args.masks is None:
        raise ValueError("what is object is not known: give --boxes or --masks")
    views = measure_models(args, "score_distribution", measure)
    if not views:  # another process draws and prints
        return
    print_metrics(["model"], _COLUMNS | {"num_images": "images"}, [([view.name], view.stats) for view in views], ".1f")
    for view in views:
        notes = ", ".join(f"{view.stats[key]} {words}" for key, words in _LEFT_OUT.items() if view.stats[key])
        if notes:
            print(f"{view.name}: {notes}")
    save_figure(draw_distributions(views), args.figure)


def measure(subject: Subject) -> tuple[ScoreView, list[Measurement]]:
    """One pass of a model over the images."""
    args, trained, device = subject.args, subject.trained, subject.device
    distribution, token, last_pool = ScoreDistribution(_DRAWN_BINS), args.global_token, trained.selection()
    for output, batch in dense_batches(trained.model, subject.batches(), device):
        score = patch_score(output.patch_tokens, choose_global_token(output, token, last_pool))
        distribution.update(score, *patch_foreground(batch["foreground"], output.grid_hw))
    stats = distribution.compute()
    config = {
        "global_token": token,
        "objects": "masks" if args.boxes is None else "boxes",
        "batch_size": args.batch_size,
        **{key: stats[key] for key in _LEFT_OUT},
    }
    metrics = {key: stats[key] for key in _COLUMNS}
    found = Measurement(metrics, stats["num_images"], token_words(token, trained), config)
    return ScoreView(subject.argument.name, stats, *(part.numpy() for part in distribution.histograms())), [found]


def draw_distributions(views: Sequence[ScoreView]) -> Figure:
    """Densities of the normalised score of object and background patches, with the numbers; all on the same axes."""
    figure, panels = model_panels(len(views))
    for view, axes in zip(views, panels, strict=True):
        both = (("background", view.background, BACKGROUND), ("object", view.foreground, FOREGROUND))
        for label, density, color in both:
            height = smooth(density)
            axes.stairs(height, view.edges, color=color, fill=True, alpha=0.2)
            axes.stairs(height, view.edges, color=color, linewidth=1.4, label=f"{label} patches")
        axes.set(title=view.name, xlim=(0, 1), xlabel="patch score, min-max per image")
        shares = " / ".join(f"{view.stats[f'background_top_{percent}']:.1f}" for percent in TOP_PERCENTS)
        numbers = (
            f"AUROC {view.stats['auroc']:.1f} %\nbackground among the top 1 / 5 / 10 / 50 % and all:\n"
            f"{shares} and {view.stats['background_share']:.1f} %"
        )
        axes.text(0.03, 0.98, numbers, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.4)
    finish_panels(figure, panels, "density", headroom=1.35)  # room for the numbers
    return figure


def smooth(density: np.ndarray) -> np.ndarray:
    """The released plot's smoothing, mirrored at both ends so that nothing is lost: [bins] -> [bins], of equal sum."""
    return np.convolve(np.pad(density, len(_KERNEL) // 2, mode="symmetric"), _KERNEL, mode="valid")
