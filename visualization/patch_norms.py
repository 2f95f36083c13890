"""Norms of patch tokens, and whether some stand out: "high norm: yes / no" of the paper's tables 1 and 3.

A high-norm token (Darcet et al., "Vision transformers need registers") is a patch token at the model's output, before
the final norm, whose L2 norm lies above a cut-off set between the two modes of the norms' distribution: by hand, 150
for DINOv2-g. "Can vary across models", so here it is stated, or fitted by a rule:

    cut-off = max(Q3 + 3 (Q3 - Q1), 2 median)        of all norms: Tukey's far fence, and never below twice the median
    high norm = yes, if at least 0.5 % of all patches lie at or above the cut-off

Quartiles do not see a cluster of a few percent, and a normal distribution has 1 in 10^6 above the far fence. Twice the
median is for norms that are nearly equal, as after a LayerNorm. What the rule cannot see is a second mode with a
quarter of the patches or more. And a yes means outliers: a heavy tail that far out says yes without a second mode.

Nothing is kept but a histogram: 4000 bins from 0.001 to 100 000, equal on a log scale, each 0.46 % wide. Quartiles and
maximum are exact to half a bin, outlier shares are exact for the cut-off that is reported.
"""

import math

import torch
from torch import Tensor

from last_vit.metrics.summed_counters import SummedTensors

MIN_NORM, MAX_NORM, BINS_PER_DECADE = 1e-3, 1e5, 500
FENCE, MEDIANS, MIN_PERCENT = 3.0, 2.0, 0.5
_CONSTANT = 1e-6  # a spread below this share of the largest magnitude is float32's rounding
_JOINT_STEP, _SCORE_BINS = 4, 400  # the joint histogram's bins: four of norm in one, 0.005 of score


def token_norms(patch_tokens: Tensor) -> Tensor:
    """L2 norm of every patch token: [..., D] of any float dtype -> float32 [...]."""
    return torch.linalg.vector_norm(patch_tokens.float(), dim=-1)


class PatchNorms:
    """Streaming norm statistics, summed over all processes in `compute`; memory does not grow.

    `cutoff` is the smallest norm that counts as high, inside the histogram; None fits it by the rule above.
    """

    def __init__(self, cutoff: float | None = None) -> None:
        decades = round(math.log10(MAX_NORM / MIN_NORM))
        edges = torch.logspace(
            math.log10(MIN_NORM), math.log10(MAX_NORM), decades * BINS_PER_DECADE + 1, dtype=torch.float64
        )
        if cutoff is not None:
            if not MIN_NORM < cutoff < MAX_NORM:
                raise ValueError(f"cutoff must be a norm between {MIN_NORM:g} and {MAX_NORM:g}, got {cutoff}")
            # in place of the nearest edge below, so that it parts the counts exactly
            edges[bin_index(torch.tensor(cutoff, dtype=torch.float64), edges)] = cutoff
        self.cutoff = cutoff
        self._edges = self._device_edges = edges
        self._sums = SummedTensors(
            patches=(3, len(edges) - 1),  # background, foreground, unknown
            norms=(2,),  # sum over background, foreground
            num_images=(),
            num_split=(),
            num_foreground_higher=(),
            num_outside=(),
            num_bad=(),
        )
        self.correlation = MapCorrelation(  # of norm and score
            edges[::_JOINT_STEP].contiguous(), torch.linspace(-1, 1, _SCORE_BINS + 1, dtype=torch.float64)
        )

    def update(
        self,
        norms: Tensor,
        score: Tensor | None = None,
        is_foreground: Tensor | None = None,
        is_known: Tensor | None = None,
    ) -> None:
        """Count one batch; all are [B, N], of the same patches.

        `norms` are those of the tokens before the final norm, `is_known` says where `is_foreground` says something,
        None is everywhere. Without `score` the correlation is left out, without `is_foreground` the split.
        """
        norms = norms.detach().double()
        edges = self._device_edges = self._device_edges.to(norms.device)
        is_bad = ~norms.isfinite()
        norms = norms.where(~is_bad, 0.0)
        if is_foreground is None:
            is_foreground = is_known = torch.zeros_like(is_bad)
        known = torch.ones_like(is_bad) if is_known is None else is_known
        front, back = known & is_foreground, known & ~is_foreground
        num_bins = len(self._edges) - 1
        group = torch.where(known, front.long(), 2)
        means = [(norms * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1) for mask in (back, front)]
        is_split = back.any(dim=1) & front.any(dim=1)
        self._sums.add(
            patches=count_bins(group * num_bins + bin_index(norms, edges), 3 * num_bins).reshape(3, num_bins),
            norms=torch.stack([(norms * back).sum(), (norms * front).sum()]),
            num_images=torch.tensor(len(norms), device=norms.device),
            num_split=is_split.sum(),
            num_foreground_higher=(is_split & (means[1] > means[0])).sum(),
            num_outside=((norms < MIN_NORM) | (norms >= MAX_NORM)).sum(),
            num_bad=is_bad.sum(),
        )
        if score is not None:
            self.correlation.update(norms, score)

    def compute(self) -> dict[str, float]:
        """Statistics over everything counted by all processes.

        Always: "norm_median", "norm_q1", "norm_q3", "norm_max"; "cutoff" and "outlier_share" (percent of patches);
        "high_norm", 1 or 0; "num_images", "num_patches", "num_outside" (patches outside the histogram's range, counted
        in its border bins). With scores: what `MapCorrelation.compute` gives.
        With foreground and background patches: "norm_foreground" and "norm_background" (means over patches),
        "norm_ratio" (the first over the second), "foreground_higher" (percent of the images with both in which the
        foreground's mean norm is the higher), "num_split_images" (those images), "background_share" (percent of the
        known patches) and, where there are known outliers, "outliers_in_background" (percent of those).
        ValueError for norms that are not finite, and for a fit without a median to fit on.
        """
        totals = self._sums.totals()
        counts = totals["patches"].sum(dim=0)
        num_patches, num_bad = int(counts.sum()), int(totals["num_bad"])
        if num_bad:
            raise ValueError(f"{num_bad} of {num_patches} patch tokens have norms that are not finite; check the model")
        q1, median, q3 = (self._quantile(counts, level) for level in (0.25, 0.5, 0.75))
        cut = self._cut(q1, median, q3)
        share = 100 * float(counts[cut:].sum()) / num_patches
        last = int(counts.nonzero().max())
        found = {
            "norm_median": median,
            "norm_q1": q1,
            "norm_q3": q3,
            "norm_max": float((self._edges[last] * self._edges[last + 1]).sqrt()),
            "cutoff": float(self._edges[cut]),
            "outlier_share": share,
            "high_norm": int(share >= MIN_PERCENT),
            "num_images": int(totals["num_images"]),
            "num_patches": num_patches,
            "num_outside": int(totals["num_outside"]),
        }
        return found | self.correlation.compute() | self._split(totals, cut)

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Edges float64 [bins + 1] and patches per bin [bins]; every process must call this together."""
        return self._edges, self._sums.totals()["patches"].sum(dim=0)

    def split_histogram(self) -> tuple[Tensor, Tensor]:
        """Foreground's and background's patches per bin, as `histogram`; unknown patches are in neither."""
        background, foreground, _ = self._sums.totals()["patches"]
        return foreground, background

    def _cut(self, q1: float, median: float, q3: float) -> int:
        """The first bin that counts as high."""
        if self.cutoff is not None:
            return int(bin_index(torch.tensor(self.cutoff, dtype=torch.float64), self._edges))
        if median <= self._edges[1]:
            raise ValueError(f"half of the patches have a norm below {self._edges[1]:.3g}: no cut-off fits; state one")
        fence = max(q3 + FENCE * (q3 - q1), MEDIANS * median)
        return min(int(torch.searchsorted(self._edges, fence)), len(self._edges) - 2)

    def _quantile(self, counts: Tensor, level: float) -> float:
        """The norm below which a share of the patches lies, interpolated inside its bin on the log scale."""
        cumulative = counts.cumsum(dim=0)
        target = level * float(cumulative[-1])
        index = int(torch.searchsorted(cumulative, target))
        below = float(cumulative[index] - counts[index])
        inside = (target - below) / float(counts[index])
        low, high = self._edges[index].log(), self._edges[index + 1].log()
        return math.exp(low + inside * (high - low))

    def _split(self, totals: dict[str, Tensor], cut: int) -> dict[str, float]:
        background, foreground = totals["patches"][0], totals["patches"][1]
        num_background, num_foreground = float(background.sum()), float(foreground.sum())
        if not num_background or not num_foreground:
            return {}
        norm_background, norm_foreground = (totals["norms"] / torch.tensor([num_background, num_foreground])).tolist()
        num_outliers = float(background[cut:].sum() + foreground[cut:].sum())
        num_split = int(totals["num_split"])
        found = {
            "norm_foreground": norm_foreground,
            "norm_background": norm_background,
            "background_share": 100 * num_background / (num_background + num_foreground),
            "num_split_images": num_split,
        }
        if norm_background > 0:
            found["norm_ratio"] = norm_foreground / norm_background
        if num_split:
            found["foreground_higher"] = 100 * float(totals["num_foreground_higher"]) / num_split
        if num_outliers:
            found["outliers_in_background"] = 100 * float(background[cut:].sum()) / num_outliers
        return found


class MapCorrelation:
    """How two values of a patch go together: Pearson correlation and joint histogram, summed over all processes.

    Made for norm against patch score (paper Sec. 12, figure 9): inside an image ("are its high-norm patches its
    high-score patches?"), averaged over images, and pooled over all patches, into which differences between images
    enter too. Edges are float64 [X + 1] and [Y + 1], ascending; values outside count in the border bins.
    """

    def __init__(self, x_edges: Tensor, y_edges: Tensor) -> None:
        self.x_edges, self.y_edges = x_edges, y_edges
        self._sums = SummedTensors(
            num_images=(), num_constant=(), per_image=(), moments=(6,), joint=(len(x_edges) - 1, len(y_edges) - 1)
        )

    def update(self, x: Tensor, y: Tensor) -> None:
        """Count one batch of two maps, real [B, N] and finite."""
        x, y = x.detach().double(), y.detach().double()
        self.x_edges, self.y_edges = self.x_edges.to(x.device), self.y_edges.to(x.device)
        centred_x, centred_y = (values - values.mean(dim=1, keepdim=True) for values in (x, y))
        is_constant = _is_constant(x, centred_x) | _is_constant(y, centred_y)
        product = (centred_x * centred_y).sum(dim=1)
        spread = (centred_x.square().sum(dim=1) * centred_y.square().sum(dim=1)).sqrt()
        per_image = torch.where(is_constant, 0.0, product / torch.where(is_constant, 1.0, spread))
        moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=(1, 2))
        num_x, num_y = len(self.x_edges) - 1, len(self.y_edges) - 1
        cell = bin_index(x, self.x_edges) * num_y + bin_index(y, self.y_edges)
        self._sums.add(
            num_images=torch.tensor(len(x), device=x.device),
            num_constant=is_constant.sum(),
            per_image=per_image.sum(),
            moments=moments,
            joint=count_bins(cell, num_x * num_y).reshape(num_x, num_y),
        )

    def compute(self) -> dict[str, float]:
        """Correlations over everything counted by all processes.

        "correlation" in [-1, 1], the mean over images of each image's own; "correlation_pooled" in [-1, 1], over all
        patches of all images at once; "num_constant_maps", images left out of the first because one of the two maps is
        constant. Either correlation is absent where nothing varies, and all three where nothing was counted.
        """
        totals = self._sums.totals()
        num_images, num_constant = int(totals["num_images"]), int(totals["num_constant"])
        if num_images == 0:
            return {}
        found: dict[str, float] = {"num_constant_maps": num_constant}
        if num_images > num_constant:
            found["correlation"] = float(totals["per_image"]) / (num_images - num_constant)
        count, x, y, xx, yy, xy = totals["moments"].tolist()
        variances = [square / count - (value / count) ** 2 for value, square in ((x, xx), (y, yy))]
        floors = [_CONSTANT**2 * square / count for square in (xx, yy)]
        if all(variance > floor for variance, floor in zip(variances, floors, strict=True)):
            pooled = (xy / count - x * y / count**2) / (variances[0] * variances[1]) ** 0.5
            found["correlation_pooled"] = min(1.0, max(-1.0, pooled))
        return found

    def joint_histogram(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges of x [X + 1], of y [Y + 1], patches per bin [X, Y]; every process must call this together."""
        return self.x_edges.cpu(), self.y_edges.cpu(), self._sums.totals()["joint"]


def bin_index(values: Tensor, edges: Tensor) -> Tensor:
    """The bin [edge, next edge) of each value, the border bins for values outside: real [...] -> long [...]."""
    return (torch.bucketize(values.double(), edges, right=True) - 1).clamp(0, len(edges) - 2)


def merge_bins(counts: Tensor, most: int, begin: int | None = None) -> Tensor:
    """Edges, as indices, of at most about `most` wider bins over all that hold counts [bins].

    They are equally wide, and one of them begins at bin `begin`, held or not.
    """
    filled = counts.nonzero().flatten().tolist() + ([] if begin is None else [begin])
    first, last, begin = min(filled), max(filled) + 1, begin or 0
    step = -(-(last - first) // most)
    start = begin + (first - begin) // step * step
    return torch.arange(start, last + step, step).clamp(0, len(counts)).unique()


def count_bins(index: Tensor, num_bins: int) -> Tensor:
    """How often each bin occurs: long [...] in [0, num_bins) -> float64 [num_bins]; never waits for a GPU."""
    counts = torch.zeros(num_bins, dtype=torch.float64, device=index.device)
    return counts.index_add_(0, index.flatten(), counts.new_ones(()).expand(index.numel()))


def _is_constant(values: Tensor, centred: Tensor) -> Tensor:
    """Which maps vary by no more than rounding: two float64 [B, N] -> bool [B]."""
    return centred.abs().amax(dim=1) <= _CONSTANT * values.abs().amax(dim=1)
