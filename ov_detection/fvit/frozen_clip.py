"""The frozen CLIP image tower under the detector: block outputs for the pyramid, the dense map for the second score."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from frozen_tower import FeatureCache, FrozenTower
from torch import Tensor
from torch.nn import functional as F

from last_vit.clip_dense import clip_block_features, clip_dense_forward
from last_vit.clip_models import load_clip

# What the last block does, by its name here and by clip_dense.py's.
DENSE = {"last-block-value": "fvit", "plain": "vanilla"}
_BLOCKS = {12: (3, 5, 7, 11), 24: (6, 10, 14, 23)}


class ClipFeatures(NamedTuple):
    """What the detector reads of a tower."""

    blocks: tuple[Tensor, ...]  # four maps [B, width, h, w], raw block outputs, shallow to deep
    dense: Tensor | None  # [B, E, h, w] of length 1 in the space of the text embeddings; None where not asked for


class FrozenClip(FrozenTower):
    """A CLIP image tower that is only read.

    `arch` is an open_clip architecture or JSON config (F-ViT: EVA02-B-16, EVA02-L-14-336), and `checkpoint` or
    `random_seed` its weights as `load_clip` takes them. `blocks` are four indices from 0, shallow to deep; F-ViT's are
    3, 5, 7, 11 of 12 and 6, 10, 14, 23 of 24, the defaults; for another depth they are spread evenly. `dense`, which
    the deepest pyramid level sees too, is "last-block-value": the last block passes each patch its own value, without
    attention (F-ViT's, for towers whose patches were not trained); or "plain": the last block as it is (LaSt's patches
    are the features). With `bf16` it runs in bfloat16 autocast and answers in float32; F-ViT trains in float16.
    `in_checkpoint` says whether the detector's state dict holds the tower too, for one file that needs no other, and
    `cache_images` of how many images block features are kept in training (`FeatureCache`).

    `source` is what a trained detector belongs to: arch, weights (16 hex digits, or the seed), dense, blocks.
    """

    def __init__(
        self,
        arch: str,
        checkpoint: str | Path | None = None,
        *,
        blocks: tuple[int, int, int, int] | None = None,
        dense: str = "last-block-value",
        bf16: bool = True,
        in_checkpoint: bool = False,
        cache_images: int = 0,
        random_seed: int | None = None,
    ) -> None:
        super().__init__()
        if dense not in DENSE:
            raise ValueError(f"dense must be one of {', '.join(DENSE)}, got {dense!r}")
        loaded = load_clip(arch, checkpoint, random_seed=random_seed)
        tower = loaded.model.visual
        self.hold(tower, in_checkpoint)
        self.dense, self.bf16 = dense, bf16
        trunk = getattr(tower, "trunk", None)
        depth = len(tower.transformer.resblocks if trunk is None else trunk.blocks)
        self.patch_size = (tower if trunk is None else trunk.patch_embed).patch_size[0]
        self.blocks = tuple(blocks or _BLOCKS.get(depth) or (math.ceil(depth * part / 4) - 1 for part in (1, 2, 3, 4)))
        if len(self.blocks) != 4 or sorted(self.blocks) != list(self.blocks):
            raise ValueError(f"blocks must be four block indices, shallow to deep, got {list(self.blocks)}")
        self.source = {
            "arch": loaded.arch,
            "weights": loaded.checkpoint_sha256 or f"random, seed {random_seed}",
            "dense": dense,
            "blocks": list(self.blocks),
        }
        self.cache = FeatureCache(cache_images, torch.bfloat16 if bf16 else torch.float32)
        probe = self(torch.zeros(1, 3, 2 * self.patch_size, 2 * self.patch_size))
        self.width, self.embed_dim = probe.blocks[0].shape[1], probe.dense.shape[1]

    @torch.no_grad()
    def forward(self, images: Tensor, with_dense: bool = True) -> ClipFeatures:
        """[B, 3, H, W] normalised, of any size -> `ClipFeatures`, float32."""
        if not with_dense:
            return ClipFeatures(self.cache.get(images, self._run) if self.training else self._run(images), None)
        with self._autocast(images):
            out = clip_dense_forward(self.tower, images, self.blocks, DENSE[self.dense], "fvit")
        dense = F.normalize(out.features.float(), dim=2).transpose(1, 2).unflatten(2, out.grid_hw)
        return ClipFeatures(tuple(block.float() for block in out.blocks), dense)

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        with self._autocast(images):
            maps = clip_block_features(self.tower, images, self.blocks, DENSE[self.dense], "fvit")
        return tuple(block.float() for block in maps)

    def _autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16)
