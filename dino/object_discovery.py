"""Four ways to one box per image from what a frozen ViT gives for its patches: patch score, LOST, DINO-seg, TokenCut.

Single-object discovery without labels (paper Sec. 5.2 and Tab. 7). Every method makes a mask over the patch grid, keeps
one connected component of it (4-connected), and boxes it. One image at a time, for images come at their own resolution.
Where the published code of a method does something that its text does not say, the default follows the code, because
that is what the published numbers were made with; DINO-seg's three slips are behind `as_published`.

Letters: N = h * w patches row by row on the grid `grid_hw`, D channels. Boxes are xyxy in pixels of the unpadded image,
x2 and y2 exclusive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from last_attention import LastAttention, last_attention
from torch import Tensor, nn

from last_vit.boxes import Box, largest_component, patch_box
from last_vit.dense import choose_global_token, dense_forward
from last_vit.patch_scores import patch_score, threshold_mask
from last_vit.pooling import LaStPool

LOST_CANDIDATES = 100
TOKENCUT_TAU, TOKENCUT_EPS = 0.2, 1e-5
DINO_SEG_MASS, DINO_SEG_HEAD = 0.6, 4


class PatchMask(NamedTuple):
    """What a method found: the patches that the box is drawn around, and the one in [0, N) that it starts from."""

    mask: np.ndarray  # bool [h, w]
    seed: int


@dataclass(frozen=True)
class DiscoveryMethod:
    """One method with its choices."""

    name: str  # in tables, such as "patch-score, largest"
    protocol: str  # the choices behind it, in a few words
    needs_attention: bool  # reads the last attention layer, else the dense output alone
    read: Callable[[LastAttention], Tensor]  # what the masks of a batch are made of: [B, ...]
    find: Callable[[Tensor, tuple[int, int]], PatchMask]  # one image's mask, from its part of that and the grid
    clip: bool = True  # whether a box ends where the image ends

    def boxes(
        self, features: LastAttention, image_hw: Sequence[tuple[int, int]], patch_size: int
    ) -> list[tuple[Box, PatchMask]]:
        """The boxes of a batch and the patches behind them; on the CPU, so a GPU has finished when this returns.

        Takes what `read_features` gives, and (height, width) of each unpadded image. What the method cannot work on
        is a ValueError.
        """
        masks = [self.find(each, features.output.grid_hw) for each in self.read(features)]
        sizes = zip(masks, image_hw, strict=True)
        return [(patch_box(found.mask, patch_size, size, self.clip), found) for found, size in sizes]


def patch_score_method(component: str, global_token: str, last_pool: LaStPool) -> DiscoveryMethod:
    """LaSt's: a component of `patch_score_mask`; token and pool as `choose_global_token` takes them."""

    def read(features: LastAttention) -> Tensor:
        output = features.output
        # one transfer per batch: what follows are a few operations on N numbers, which a CPU does sooner
        return patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool)).cpu()

    part = "whole mask" if component == "all" else f"{component} component"
    choice = f" K={last_pool.top_k} {last_pool.variant}" if global_token == "last" else ""  # noqa: S105 (no password)
    find = partial(patch_score_mask, component=component)
    return DiscoveryMethod(f"patch-score, {component}", f"{part}, {global_token} token{choice}", False, read, find)


def lost_method(num_candidates: int = LOST_CANDIDATES, features: str = "keys") -> DiscoveryMethod:
    """LOST on "queries", "keys" or "values" of the last attention layer; `num_candidates` as in `lost_mask`."""
    find = partial(lost_mask, num_candidates=num_candidates)
    return DiscoveryMethod("lost", f"{features}, {num_candidates} candidates", True, attrgetter(features), find)


def dino_seg_method(head: int = DINO_SEG_HEAD, as_published: bool = True) -> DiscoveryMethod:
    """DINO-seg on one head of the last attention layer, counted from 0; the published numbers use 4, of ViT-S/16's six.

    `as_published` keeps the three slips of the published code; see `dino_seg_mask` and `patch_box`.
    """

    def read(features: LastAttention) -> Tensor:
        attention = features.cls_attention
        if attention is None:
            raise ValueError("DINO-seg reads the class token's attention, and this model has no class token")
        if head >= attention.shape[1]:
            raise ValueError(
                f"--dino-seg-head {head}, counted from 0, is none of the last attention layer's {attention.shape[1]}"
            )
        return attention[:, head].cpu()

    find = partial(dino_seg_mask, as_published=as_published)
    protocol = f"head {head}, {'as published' if as_published else 'mended'}"
    return DiscoveryMethod("dino-seg", protocol, True, read, find, clip=not as_published)


def tokencut_method(tau: float = TOKENCUT_TAU, eps: float = TOKENCUT_EPS, features: str = "keys") -> DiscoveryMethod:
    """TokenCut, likewise; `tau` and `eps` as in `tokencut_mask`."""
    words = [features, *([f"tau {tau:g}"] if tau != TOKENCUT_TAU else [])]
    words += [f"eps {eps:g}"] if eps != TOKENCUT_EPS else []
    find = partial(tokencut_mask, tau=tau, eps=eps)
    return DiscoveryMethod("tokencut", ", ".join(words), True, attrgetter(features), find)


def read_features(model: nn.Module, images: Tensor, methods: Sequence[DiscoveryMethod]) -> LastAttention:
    """The cheapest forward pass that serves all methods."""
    if any(method.needs_attention for method in methods):
        return last_attention(model, images)
    return LastAttention(dense_forward(model, images))


def patch_score_mask(
    score: Tensor, grid_hw: tuple[int, int], component: Literal["peak", "largest", "all"] = "peak", num_std: float = 1.0
) -> PatchMask:
    """LaSt (paper Sec. 5.2): patches whose score exceeds the image's mean by `num_std` standard deviations.

    Takes the cosine of every patch to the global token, float [N]. The paper does not say how the mask becomes one box,
    so `component` does: "peak" is the component that holds the best patch, "largest" the largest, "all" the whole mask.
    Where no patch exceeds the threshold (equal scores), the best patch, which is the seed, stands alone.
    """
    seed = int(score.argmax())
    mask = _to_grid(threshold_mask(score[None].float(), num_std)[0], grid_hw)
    mask.flat[seed] = True  # equal scores: nothing is above their mean
    if component == "all":
        return PatchMask(mask, seed)
    return PatchMask(component_of(mask, seed) if component == "peak" else largest_component(mask), seed)


def lost_mask(features: Tensor, grid_hw: tuple[int, int], num_candidates: int = LOST_CANDIDATES) -> PatchMask:
    """LOST: the patches that resemble a seed of few relatives, and those like it.

    Takes float [N, D], the keys of the last attention layer, heads concatenated, not normalised. Two patches are
    relatives when the dot product of their features is positive. The seed has the fewest; its friends are those of the
    `num_candidates` patches (more than N means all) with fewest relatives that are relatives of the seed; the mask
    holds the seed's component of the patches whose dot products with the friends add up to more than zero.
    """
    gram = features.float() @ features.float().T
    is_relative = gram > 0
    degree = is_relative.sum(dim=1) - is_relative.diagonal().long()
    order = degree.argsort(stable=True)
    seed = int(order[0])
    candidates = order[:num_candidates]
    friends = candidates[gram[seed, candidates] > 0]
    mask = _to_grid(gram[friends].sum(dim=0) > 0, grid_hw)
    return PatchMask(component_of(mask, seed), seed)


def dino_seg_mask(attention: Tensor, grid_hw: tuple[int, int], as_published: bool = True) -> PatchMask:
    """DINO-seg: the largest component of the patches that hold 60% of one head's CLS attention, float [N].

    `as_published` keeps two slips of the published code: its last component (row by row) is never chosen, and where
    there is only one, the box is that of everything outside it. (The third, a box that may reach over the image's
    border, is `patch_box(..., clip=False)`.) The seed is the most attended patch.
    """
    labels, num_labels = scipy.ndimage.label(_to_grid(attention_mask(attention[None])[0], grid_hw))
    sizes = np.bincount(labels.ravel(), minlength=num_labels + 1)[: num_labels if as_published else num_labels + 1]
    chosen = int(sizes[1:].argmax()) + 1 if len(sizes) > 1 else 0
    return PatchMask(labels == chosen, int(attention.argmax()))


def attention_mask(attention: Tensor, mass: float = DINO_SEG_MASS) -> Tensor:
    """The fewest patches that hold a share `mass` of the attention (DINO's rule for its pictures).

    Sorted upwards and normalised, the patches behind the point where the running sum passes 1 - mass: float [..., N],
    not negative, -> bool [..., N]. ValueError for a mass outside (0, 1].

    Example:
        >>> attention_mask(torch.tensor([0.1, 0.5, 0.1, 0.3]))
        tensor([False,  True, False,  True])
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is a share of the attention in (0, 1], got {mass}")
    values, order = attention.sort(dim=-1)
    kept = (values / values.sum(dim=-1, keepdim=True)).cumsum(dim=-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept)


def tokencut_mask(
    features: Tensor, grid_hw: tuple[int, int], tau: float = TOKENCUT_TAU, eps: float = TOKENCUT_EPS
) -> PatchMask:
    """TokenCut: a normalised cut of the graph in which patches of cosine above `tau` weigh 1, and all others `eps`.

    Takes keys as `lost_mask` does. The seed is the patch of largest absolute value in the second eigenvector, and the
    mask its component of the side on which it lies. ValueError for fewer than 3 patches, or `eps` outside (0, 1].
    """
    if not 0 < eps <= 1:
        raise ValueError(f"TokenCut's eps is a weight in (0, 1], got {eps}")
    if len(features) < 3:
        raise ValueError(f"TokenCut splits a graph of at least 3 patches, got {len(features)}; use a larger image")
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    is_tied = (unit @ unit.T > tau).cpu().numpy()
    weights = np.where(is_tied, 1.0, eps)
    degree = np.diag(weights.sum(axis=1))
    _, vectors = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 1])
    second = vectors[:, 0]
    seed = int(np.abs(second).argmax())
    side = second > second.mean()
    if not side[seed]:
        side = ~side
    return PatchMask(component_of(_to_grid(torch.from_numpy(side), grid_hw), seed), seed)


def component_of(mask: np.ndarray, seed: int) -> np.ndarray:
    """The 4-connected component of a bool [h, w] mask that holds patch `seed`; the seed alone where it is not in it."""
    labels, _ = scipy.ndimage.label(mask)
    if mask.flat[seed]:
        return labels == labels.flat[seed]
    return np.arange(mask.size).reshape(mask.shape) == seed


def _to_grid(mask: Tensor, grid_hw: tuple[int, int]) -> np.ndarray:
    """Patches in row-major order, bool [N] on any device, as a bool [h, w] array."""
    return mask.reshape(grid_hw).cpu().numpy().copy()
