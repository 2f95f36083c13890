"""Towers that a detector only reads: F-ViT's CLIP image tower, and the cache of what a tower answered.

Frozen in every way: no gradient is recorded, parameters ask for none, train() leaves the tower in eval mode, the
optimizer does not see it. By default it is not even a submodule, so a checkpoint holds what was trained and nothing
else (B/16: 86M numbers less); the tower's weights are the file that the configuration names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
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


class FeatureCache:
    """Feature maps per image, on the CPU: for training without augmentation, where every epoch sees the same pixels.

    Images are known by their pixels (as normalised and padded), not by an id: a flipped image is another image, so
    augmentation costs the cache its use, never the training its correctness. The first images are kept and no later
    one replaces them: epochs visit images in turn, where replacing the oldest would have dropped each just before its
    return. Four maps of a B/16 at 640 pixels (768 x 40 x 40) take 20 MB in float32, one of a Ti/16 at 224 0.15 MB.

    `max_images` are kept, in `dtype`; later ones are computed every time.
    """

    def __init__(self, max_images: int, dtype: torch.dtype = torch.float32) -> None:
        self.max_images = max_images
        self.dtype = dtype
        self._maps: dict[bytes, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, images: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Features of images [B, 3, H, W]: maps [B, D, h, w], float32, on the images' device.

        Only the images that are not there are computed, together, by `compute`: [M, 3, H, W] -> maps [M, D, h, w].
        """
        if not self.max_images:
            return compute(images)
        keys = [_fingerprint(image) for image in images]
        missing = [place for place, key in enumerate(keys) if key not in self._maps]
        found: dict[bytes, tuple[Tensor, ...]] = {}
        if missing:
            computed = compute(images[missing])
            for row, place in enumerate(missing):
                # stored values are what every later step gets, so the first one gets them as well
                maps = tuple(level[row].to(self.dtype) for level in computed)
                found[keys[place]] = maps
                if len(self._maps) < self.max_images:
                    self._maps[keys[place]] = tuple(level.cpu() for level in maps)
        rows = [found.get(key) or self._maps[key] for key in keys]
        return tuple(
            torch.stack([level.to(images.device) for level in levels]).float() for levels in zip(*rows, strict=True)
        )


class FrozenTower(nn.Module):
    """What holds a frozen `tower`, which its state dict has only where `in_checkpoint` asks for one file for all.

    Call `hold` in the constructor. `.to(device)` reaches the tower all the same.
    """

    def hold(self, tower: nn.Module, in_checkpoint: bool = False) -> None:
        """Keep a tower, frozen from now on."""
        tower.eval().requires_grad_(False)
        if in_checkpoint:
            self.tower = tower
        else:
            vars(self)["tower"] = tower  # no submodule: state dict, optimizer and DDP do not find it

    def train(self, mode: bool = True) -> FrozenTower:
        """Switch the detector around the tower; the tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTower:
        if "tower" in vars(self):
            self.tower._apply(fn, recurse)
        return super()._apply(fn, recurse)


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


def _fingerprint(image: Tensor) -> bytes:
    pixels = image.detach().float().cpu().contiguous()
    digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.numpy())
    return digest.digest()
