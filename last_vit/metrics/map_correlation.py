"""How two values of a patch go together over a data set: Pearson correlation and joint histogram, streaming.

Made for norm against patch score (paper Sec. 12, figure 9). Two correlations, because they answer two questions: inside
an image ("are its high-norm patches its high-score patches?"), averaged over images, and pooled over all patches, into
which differences between images enter too.
"""

import torch
from torch import Tensor

from last_vit.metrics.summed_counters import SummedTensors

_CONSTANT = 1e-6  # a spread below this share of the largest magnitude is float32's rounding


class MapCorrelation:
    """Pearson correlation of two maps per image, with their joint histogram, summed over all processes.

    Edges are float64 [X + 1] and [Y + 1], ascending; values outside count in the border bins.
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


def count_bins(index: Tensor, num_bins: int) -> Tensor:
    """How often each bin occurs: long [...] in [0, num_bins) -> float64 [num_bins]; never waits for a GPU."""
    counts = torch.zeros(num_bins, dtype=torch.float64, device=index.device)
    return counts.index_add_(0, index.flatten(), counts.new_ones(()).expand(index.numel()))


def _is_constant(values: Tensor, centred: Tensor) -> Tensor:
    """Which maps vary by no more than rounding: two float64 [B, N] -> bool [B]."""
    return centred.abs().amax(dim=1) <= _CONSTANT * values.abs().amax(dim=1)
