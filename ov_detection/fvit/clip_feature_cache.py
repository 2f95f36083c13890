"""A bounded memory of what a frozen tower made of an image, for short schedules without augmentation.

Images are known by their pixels (as normalised and padded), not by an id: a flipped or cropped image is another image,
so augmentation costs the cache its use, never the training its correctness. The first images are kept and no later one
replaces them: epochs visit images in turn, where replacing the oldest would have dropped each just before its return.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


class ClipFeatureCache:
    """Block features per image, on the CPU.

    A B/16 at 640 pixels takes 20 MB per image (4 maps of 768 x 40 x 40 in float32), 10 MB in bfloat16.

    Args:
        max_images: Images kept; later ones are computed every time.
        dtype: What features are stored in.
    """

    def __init__(self, max_images: int, dtype: torch.dtype) -> None:
        self.max_images = max_images
        self.dtype = dtype
        self.hits = self.misses = 0
        self._maps: dict[bytes, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, images: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Features of a batch; only the images that are not there are computed, together.

        Args:
            images: [B, 3, H, W].
            compute: [M, 3, H, W] -> maps [M, D, h, w].

        Returns:
            Maps [B, D, h, w], float32, on the device of `images`.
        """
        keys = [_fingerprint(image) for image in images]
        missing = [place for place, key in enumerate(keys) if key not in self._maps]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
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


def _fingerprint(image: Tensor) -> bytes:
    pixels = image.detach().float().cpu().contiguous()
    return hashlib.blake2b(pixels.numpy().tobytes() + str(tuple(pixels.shape)).encode(), digest_size=16).digest()
