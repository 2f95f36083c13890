"""Principal components of patch tokens as colours (paper figure 7).

The first three components of a set of tokens become red, green and blue, each scaled to its own range. Which tokens go
in, of one image or of many, foreground or all, is the caller's choice. `fit_patch_pca` takes them in memory;
`PatchMoments` takes them batch by batch and keeps their mean and covariance only, for the same components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from last_vit.metrics.summed_counters import SummedTensors

_PERCENTILES = (0.02, 0.98)
_NUM_STD = 2.0


@dataclass(frozen=True)
class PatchPCA:
    """Three principal components, and the range of each that is drawn.

    Attributes:
        mean: float64 [D].
        components: float64 [3, D], orthonormal, most variance first. Of a component and its negative the one is taken
            whose entry of largest magnitude is positive. Where the tokens span fewer dimensions, the rest are zeros.
        low: float64 [3], the projection that is drawn as 0.
        high: float64 [3], the projection that is drawn as 1.
        explained: float64 [3], share of the tokens' whole variance, in [0, 1].
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: Tensor

    def project(self, tokens: Tensor) -> Tensor:
        """Coordinates on the components: real [..., D] -> float64 [..., 3].

        Raises:
            ValueError: Tokens of another width.
        """
        if tokens.shape[-1] != len(self.mean):
            raise ValueError(f"this PCA is of tokens of width {len(self.mean)}, got {tuple(tokens.shape)}")
        mean, components = self.mean.to(tokens.device), self.components.to(tokens.device)
        return (tokens.double() - mean) @ components.T

    def rgb(self, tokens: Tensor) -> Tensor:
        """Colours: real [..., D] -> float32 [..., 3] in [0, 1]; 0.5 on a component along which nothing varies."""
        low, high = self.low.to(tokens.device), self.high.to(tokens.device)
        is_flat = high <= low
        scaled = (self.project(tokens) - low) / torch.where(is_flat, 1.0, high - low)
        return torch.where(is_flat, 0.5, scaled.clamp(0, 1)).float()


def fit_patch_pca(tokens: Tensor) -> PatchPCA:
    """PCA of tokens in memory; colours run from the 2nd to the 98th percentile of each component.

    Args:
        tokens: Real [M, D], M and D at least 3, finite. Computed in float64 whatever the dtype.

    Returns:
        The PCA, on the CPU.

    Raises:
        ValueError: Fewer than 3 tokens or channels, or tokens that are not finite.

    Example:
        >>> tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> fit_patch_pca(tokens).rgb(tokens.unflatten(0, (5, 10))).shape
        torch.Size([5, 10, 3])
    """
    moments = PatchMoments(tokens.shape[-1])
    moments.update(tokens)
    pca = moments.fit()
    levels = torch.tensor(_PERCENTILES, dtype=torch.float64)
    low, high = torch.quantile(pca.project(tokens.detach().cpu()), levels, dim=0)
    return PatchPCA(pca.mean, pca.components, low, high, pca.explained)


class PatchMoments:
    """Mean and covariance of tokens, summed over batches and processes: a PCA of a data set in D x D memory.

    Args:
        num_channels: D.

    Raises:
        ValueError: Fewer than 3 channels.
    """

    def __init__(self, num_channels: int) -> None:
        if num_channels < 3:
            raise ValueError(f"three components need at least 3 channels, got {num_channels}")
        self.num_channels = num_channels
        self._sums = SummedTensors(count=(), total=(num_channels,), products=(num_channels, num_channels))

    def update(self, tokens: Tensor) -> None:
        """Count tokens: real [M, D], M may be 0.

        Raises:
            ValueError: Another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_channels:
            raise ValueError(f"tokens must be [M, {self.num_channels}], got {tuple(tokens.shape)}")
        tokens = tokens.detach().double()
        count = torch.tensor(len(tokens), device=tokens.device)
        self._sums.add(count=count, total=tokens.sum(dim=0), products=tokens.T @ tokens)

    def fit(self) -> PatchPCA:
        """The components of everything counted by all processes, who must call this together.

        Colours run over mean +- 2 standard deviations of each component, because percentiles would need every token.

        Raises:
            ValueError: Fewer than 3 tokens, or tokens that were not finite.
        """
        totals = self._sums.totals()
        count = int(totals["count"])
        if count < 3:
            raise ValueError(f"three components need at least 3 tokens, got {count}")
        if not totals["products"].isfinite().all():
            raise ValueError("tokens hold values that are not finite; check the model")
        mean = totals["total"] / count
        covariance = totals["products"] / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        components, variance = vectors.T.flip(0)[:3], values.flip(0)[:3].clamp_min(0)
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        # below this a component is rounding: of the products, whose size is that of the mean's square
        floor = 1e-12 * float(totals["products"].diagonal().max()) / count
        is_real = variance > floor
        components = torch.where(is_real[:, None], components * largest.sign(), 0.0)
        std = torch.where(is_real, variance, 0.0).sqrt()
        whole = covariance.diagonal().sum().clamp_min(floor + torch.finfo(torch.float64).tiny)
        return PatchPCA(mean, components, -_NUM_STD * std, _NUM_STD * std, std.square() / whole)
