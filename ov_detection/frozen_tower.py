"""Towers that a detector only reads, and the cache of what they answered.

Frozen in every way: no gradient is recorded, parameters ask for none, train() leaves the tower in eval mode, the
optimizer does not see it. By default it is not even a submodule, so a checkpoint holds what was trained and nothing
else; the tower's weights are the file that the configuration names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


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


def _fingerprint(image: Tensor) -> bytes:
    pixels = image.detach().float().cpu().contiguous()
    return hashlib.blake2b(pixels.numpy().tobytes() + str(tuple(pixels.shape)).encode(), digest_size=16).digest()
