"""The four ways to one box per image behind one interface: what each reads from a forward pass, and its box.

`object_discovery.py` turns one image's numbers into a mask; here stands which numbers those are, and the choices that a
result must name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from last_attention import LastAttention, last_attention
from object_discovery import (
    LOST_CANDIDATES,
    Box,
    PatchMask,
    dino_seg_mask,
    lost_mask,
    patch_box,
    patch_score_mask,
    tokencut_mask,
)
from torch import Tensor, nn

from last_vit.adapters import DenseOutput
from last_vit.dense import dense_forward
from last_vit.patch_hit import choose_global_token
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool

DINO_SEG_HEAD = 4


@dataclass(frozen=True)
class DiscoveryMethod:
    """One method with its choices."""

    name: str  # in tables, such as "patch-score, largest"
    protocol: str  # the choices behind it, in a few words
    needs_attention: bool  # reads the last attention layer, else the dense output alone
    read: Callable[[DenseOutput | LastAttention], Tensor]  # what the masks of a batch are made of: [B, ...]
    find: Callable[[Tensor, tuple[int, int]], PatchMask]  # one image's mask, from its part of that and the grid
    clip: bool = True  # whether a box ends where the image ends

    def boxes(
        self, features: DenseOutput | LastAttention, image_hw: Sequence[tuple[int, int]], patch_size: int
    ) -> list[tuple[Box, PatchMask]]:
        """The boxes of a batch and the patches behind them; on the CPU, so a GPU has finished when this returns.

        Args:
            features: Of `feature_reader`.
            image_hw: (height, width) of each unpadded image, in pixels.
            patch_size: Side of a patch in pixels.

        Raises:
            ValueError: What the method cannot work on.
        """
        masks = [self.find(each, _dense_output(features).grid_hw) for each in self.read(features)]
        return [
            (patch_box(found.mask, patch_size, size, self.clip), found)
            for found, size in zip(masks, image_hw, strict=True)
        ]


def patch_score_method(component: str, global_token: str, last_pool: LaStPool) -> DiscoveryMethod:
    """LaSt's: a component of `patch_score_mask`; token and pool as `choose_global_token` takes them."""

    def read(features: DenseOutput | LastAttention) -> Tensor:
        output = _dense_output(features)
        # one transfer per batch: what follows are a few operations on N numbers, which a CPU does sooner
        return patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool)).cpu()

    part = "whole mask" if component == "all" else f"{component} component"
    choice = f" K={last_pool.top_k} {last_pool.variant}" if global_token == "last" else ""  # noqa: S105 (no password)
    return DiscoveryMethod(
        name=f"patch-score, {component}",
        protocol=f"{part}, {global_token} token{choice}",
        needs_attention=False,
        read=read,
        find=partial(patch_score_mask, component=component),
    )


def lost_method(num_candidates: int = LOST_CANDIDATES) -> DiscoveryMethod:
    """LOST on the keys of the last attention layer; `num_candidates` as in `lost_mask`."""
    find = partial(lost_mask, num_candidates=num_candidates)
    return DiscoveryMethod("lost", f"keys, {num_candidates} candidates", True, _keys, find)


def dino_seg_method(head: int = DINO_SEG_HEAD, as_published: bool = True) -> DiscoveryMethod:
    """DINO-seg on one head of the last attention layer.

    Args:
        head: Counted from 0; the published numbers use 4, of ViT-S/16's six.
        as_published: With the three slips of the published code; see `dino_seg_mask` and `patch_box`.
    """

    def read(features: LastAttention) -> Tensor:
        attention = features.cls_attention
        if attention is None:
            raise ValueError("DINO-seg reads the class token's attention, and this model has no class token")
        if head >= attention.shape[1]:
            raise ValueError(
                f"DINO-seg was asked to read head {head}, counted from 0, but the last attention layer has "
                f"{attention.shape[1]}; choose another with --dino-seg-head"
            )
        return attention[:, head].cpu()

    return DiscoveryMethod(
        name="dino-seg",
        protocol=f"head {head}, {'as published' if as_published else 'mended'}",
        needs_attention=True,
        read=read,
        find=partial(dino_seg_mask, as_published=as_published),
        clip=not as_published,
    )


def tokencut_method() -> DiscoveryMethod:
    """TokenCut on the keys of the last attention layer."""
    return DiscoveryMethod("tokencut", "keys", True, _keys, tokencut_mask)


def feature_reader(methods: Sequence[DiscoveryMethod]) -> Callable[[nn.Module, Tensor], DenseOutput | LastAttention]:
    """The cheapest forward pass that serves all methods."""
    return last_attention if any(method.needs_attention for method in methods) else dense_forward


def _keys(features: LastAttention) -> Tensor:
    return features.keys


def _dense_output(features: DenseOutput | LastAttention) -> DenseOutput:
    return features.output if isinstance(features, LastAttention) else features
