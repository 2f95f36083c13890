"""Principal components of patch tokens as colours (paper figure 7).

The first three components of a set of tokens become red, green and blue, each scaled to its own range. Which tokens go
in, of one image or of many, foreground or all, is the caller's choice. `fit_patch_pca` takes them in memory;
`PatchMoments` takes them batch by batch and keeps their mean and covariance only, for the same components.
"""

import argparse
from typing import NamedTuple

import torch
from figure_style import save_figure
from foreground_images import patch_foreground, to_pixels
from map_figures import Column, ModelMaps, among_dimmed, choose_images, draw_maps, read_images
from measured_models import Measurement, Subject, measure_models
from torch import Tensor

from last_vit.adapters import DenseOutput
from last_vit.dense import dense_batches, dense_forward
from last_vit.evaluation import print_table
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.patch_scores import patch_score, threshold_mask

_PERCENTILES = (0.02, 0.98)
_NUM_STD = 2.0
_MIN_PATCHES = 3


class PatchPCA(NamedTuple):
    """Three principal components, and the range of each that is drawn; float64, on the CPU as the tokens are.

    Components are orthonormal, most variance first, each with its entry of largest magnitude positive; where the tokens
    span fewer dimensions, the rest are zeros.
    """

    mean: Tensor  # [D]
    components: Tensor  # [3, D]
    low: Tensor  # [3], the projection that is drawn as 0
    high: Tensor  # [3], the projection that is drawn as 1
    explained: Tensor  # [3], share of the tokens' whole variance, in [0, 1]

    def project(self, tokens: Tensor) -> Tensor:
        """Coordinates on the components: real [..., D] -> float64 [..., 3]."""
        return (tokens.double() - self.mean) @ self.components.T

    def rgb(self, tokens: Tensor) -> Tensor:
        """Colours: real [..., D] -> float32 [..., 3] in [0, 1]; 0.5 on a component along which nothing varies."""
        is_flat = self.high <= self.low
        scaled = (self.project(tokens) - self.low) / torch.where(is_flat, 1.0, self.high - self.low)
        return torch.where(is_flat, 0.5, scaled.clamp(0, 1)).float()


def fit_patch_pca(tokens: Tensor) -> PatchPCA:
    """PCA of finite tokens [M, D] on the CPU, M and D at least 3; computed in float64 whatever the dtype.

    Colours run from the 2nd to the 98th percentile of each component.

    Example:
        >>> tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> fit_patch_pca(tokens).rgb(tokens.unflatten(0, (5, 10))).shape
        torch.Size([5, 10, 3])
    """
    moments = PatchMoments(tokens.shape[-1])
    moments.update(tokens)
    pca = moments.fit()
    levels = torch.tensor(_PERCENTILES, dtype=torch.float64)
    low, high = torch.quantile(pca.project(tokens), levels, dim=0)
    return pca._replace(low=low, high=high)


class PatchMoments:
    """Mean and covariance of tokens of D >= 3 channels, summed over batches and processes, in D x D memory."""

    def __init__(self, num_channels: int) -> None:
        self._sums = SummedTensors(count=(), total=(num_channels,), products=(num_channels, num_channels))

    def update(self, tokens: Tensor) -> None:
        """Count tokens: real [M, D], M may be 0."""
        tokens = tokens.double()
        count = torch.tensor(len(tokens), device=tokens.device)
        self._sums.add(count=count, total=tokens.sum(dim=0), products=tokens.T @ tokens)

    def fit(self) -> PatchPCA:
        """The components of everything counted by all processes, who must call this together.

        Colours run over mean +- 2 standard deviations of each component, because percentiles would need every token.
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


class PCAView(NamedTuple):
    """What is drawn and written of one model."""

    name: str
    maps: ModelMaps
    explained: list[float]  # share of the fitted variance per component, in [0, 1]; with a fit per image, their mean
    num_fitted: int  # images that the components are of
    num_too_few: int  # images without a fit of their own, for want of foreground patches


def run(args: argparse.Namespace) -> None:
    """The command visualize_pca.py."""
    views = measure_models(args, "pca", measure)
    if not views:  # another process draws and prints
        return
    cells = [["% of variance", "component 1", "2", "3", "images", "with too few foreground patches"]]
    for view in views:
        shares = [f"{100 * share:.1f}" for share in view.explained]
        cells.append([view.name, *shares, str(view.num_fitted), str(view.num_too_few)])
    print_table(cells)
    save_figure(draw_maps([view.maps for view in views]), args.figure)


def measure(subject: Subject) -> tuple[PCAView, list[Measurement]]:
    """Fit the components of one model, and colour the images drawn by --seed; too little foreground is a ValueError."""
    args, argument, trained, images, device = subject
    chosen = choose_images(len(images), args.num_images, args.seed, "--num-images")
    examples = read_images(images, chosen, trained.preprocessing)
    with torch.inference_mode():
        output = dense_forward(trained.model, examples.inputs.to(device))
        masks = foreground_patches(output, examples.foregrounds.to(device), images.has_foreground).cpu()
    tokens = output.patch_tokens.cpu()
    if args.fit == "set":
        moments = PatchMoments(tokens.shape[2])
        for part, batch in dense_batches(trained.model, subject.batches(), device):
            moments.update(part.patch_tokens[foreground_patches(part, batch["foreground"], images.has_foreground)])
        try:
            fits, num_fitted = [moments.fit()] * len(masks), len(images)
        except ValueError as error:
            raise ValueError(f"foreground of {len(images)} images: {error}") from error
    else:
        enough = [int(mask.sum()) >= _MIN_PATCHES for mask in masks]
        fits = [fit_patch_pca(tokens[i][masks[i]]) if is_enough else None for i, is_enough in enumerate(enough)]
        num_fitted = sum(enough)
    if num_fitted == 0:
        raise ValueError(
            f"none of the {len(fits)} images has {_MIN_PATCHES} foreground patches on the grid of {output.grid_hw}; "
            "take --fit set, more images, or a larger --image-size"
        )
    is_fitted, grey = torch.tensor([fit is not None for fit in fits]), torch.zeros(tokens.shape[1], 3)
    colors = torch.stack([fit.rgb(each) if fit else grey for fit, each in zip(fits, tokens, strict=True)])
    kept, colors = (each.unflatten(1, output.grid_hw) for each in (masks & is_fitted[:, None], colors))
    shown = among_dimmed(examples, kept, to_pixels(colors, examples.pictures.shape[1:3]))
    captions = ["" if kept_patches.any() else "too few foreground patches" for kept_patches in kept]
    explained = torch.stack([fit.explained for fit in fits if fit is not None]).mean(dim=0).tolist()
    maps = ModelMaps("", examples, [Column(argument.name, shown, captions)])
    view = PCAView(argument.name, maps, explained, num_fitted, num_too_few=int((~is_fitted).sum()))
    metrics = {f"explained_{i}": 100 * share for i, share in enumerate(explained, start=1)}
    config = {
        "foreground": "annotations" if images.has_foreground else "patch score above its mean",
        "seed": args.seed,
        "num_too_few_patches": view.num_too_few,
    }
    return view, [Measurement(metrics, num_fitted, f"fitted per {args.fit}", config)]


def foreground_patches(output: DenseOutput, foreground: Tensor, has_foreground: bool) -> Tensor:
    """The patches that are coloured, bool [B, N]: by uint8 [B, S, S], or by the patch score where that says nothing."""
    if has_foreground:
        return patch_foreground(foreground, output.grid_hw)[0]
    return threshold_mask(patch_score(output.patch_tokens, output.global_token), num_std=0.0)
