"""Synthetic photographs for tests, debug configs and the demo: one labelled object in a cluttered scene.

A class is the conjunction of an outline and a surface pattern ("striped star") with a hue around which its colours
scatter, as those of photographed things do; size, orientation, place and proportions are free. Every image also holds
distractors, smaller than the object: the outlines of classes with a plain surface, and irregular blobs with the
patterns of classes, in any colour; the background, drawn without regard to the class, gives nothing. Spectra are broad
(1 / f noise in scene, surfaces and warps), the light falls off to one side, pixels are noisy, and some objects are cut
by the border or partly covered. Most boxes take more than a quarter of the image.

Made to be nearer to photographs than gratings are, and never tuned towards a result of any method; the hue is there so
that a small ViT learns something within the demo's minutes. Everything is a pure function of (seed, split, index) and
the sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from last_vit.boxes import mask_to_box
from last_vit.data import synthetic_parts as parts
from last_vit.data.imagenet_layout import SPLITS
from last_vit.data.synthetic_captions import describe

MAX_CLASSES = len(parts.SHAPES) * len(parts.PATTERNS)
_RADIUS = (0.15, 0.55)  # of the object's circumscribed circle, in image sides
_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))  # between the hues of neighbouring classes: any number spreads evenly
_HUE_SCATTER = 0.4  # standard deviation within a class, radians
_MIN_VISIBLE = 0.6  # share of the object that occluders must leave


class SyntheticSample(NamedTuple):
    """One rendered image: RGB, the class, the visible part of its object as a tight box and a mask, and a caption.

    The caption tells the object's colour, class and place, and the scene's kind; see synthetic_captions.py.
    """

    image: Image.Image
    label: int
    class_name: str
    box_xyxy: Tensor  # float32 [4], pixels, x2 and y2 exclusive
    mask: Tensor  # bool [H, W], the object's visible pixels
    caption: str


class SyntheticObjects(Dataset):
    """Data set of rendered images with the samples of `ImageNetDataset` (each has exactly one object).

    Args:
        num_images: Length. Image i has label i % num_classes.
        split: "train" or "val"; the two share no image.
        image_size: Side in pixels, at least 16.
        num_classes: 2 to `MAX_CLASSES`. Up to 5 share neither outline nor pattern, up to 8 no outline.
        seed: Non-negative.
        transform: Callable from a PIL RGB image to a tensor; None gives uint8 [3, H, W].

    Attributes:
        classes: Names in the order of the labels, such as "striped star".
        labels: int64 array [num_images].

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        num_images: int,
        split: str,
        image_size: int = 64,
        num_classes: int = 32,
        seed: int = 0,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if num_images < 1 or image_size < 16 or seed < 0:
            raise ValueError(
                f"num_images must be at least 1, image_size at least 16 and seed not negative, got {num_images}, "
                f"{image_size} and {seed}"
            )
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be in [2, {MAX_CLASSES}] (outlines x patterns), got {num_classes}")
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self.transform = transform
        # 8 outlines and 5 patterns have no common divisor, so walking along both meets every pair once; neighbours
        # differ in both, so few classes are easy and more of them are harder
        num_shapes, num_patterns = len(parts.SHAPES), len(parts.PATTERNS)
        cues = [(parts.SHAPES[c % num_shapes], parts.PATTERNS[c % num_patterns]) for c in range(num_classes)]
        self.classes = [f"{pattern} {shape}" for shape, pattern in cues]
        self.labels = np.arange(num_images, dtype=np.int64) % num_classes
        self._cues = cues

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.render(index)
        image = sample.image
        return {
            "image": pil_to_tensor(image) if self.transform is None else self.transform(image),
            "label": int(self.labels[index]),
            "index": index,
            "box_xyxy": sample.box_xyxy,
            "image_hw": torch.tensor([self.image_size, self.image_size]),
            "num_objects": 1,
        }

    def render(self, index: int) -> SyntheticSample:
        """Draw image `index` with its box, mask and caption.

        Raises:
            IndexError: `index` is not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        label = int(self.labels[index])
        shape, pattern = self._cues[label]
        kind = parts.BACKGROUNDS[rng.integers(len(parts.BACKGROUNDS))]
        pixels, mask = _compose(shape, pattern, _GOLDEN_ANGLE * label, kind, self.image_size, rng)
        caption = describe(self.classes[label], kind, pixels, mask)
        mask = torch.from_numpy(mask)
        return SyntheticSample(Image.fromarray(pixels), label, self.classes[label], mask_to_box(mask), mask, caption)


def _compose(
    shape: str, pattern: str, hue: float, kind: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene back to front: uint8 [size, size, 3], and the object's visible mask, bool [size, size]."""
    slopes = (parts.BACKGROUND_SLOPE[kind], 1.0, 1.0, 2.0)
    first, second, grain, warp = parts.noise_fields(slopes, size, rng)
    image = parts.draw_clutter(parts.background(kind, first, second, rng), int(rng.integers(4, 12)), rng)
    radius = rng.uniform(*_RADIUS)
    for _ in range(rng.integers(1, 4)):
        distractor_shape, distractor_pattern = _distractor_cues(rng)
        place = rng.uniform(0, 1, 2)
        cover = parts.place_outline(parts.outline(distractor_shape, rng), place, radius * rng.uniform(0.3, 0.6), size)
        _paint(image, cover, distractor_pattern, place, radius, grain, warp, rng)
    # larger objects keep nearer to the centre, as in photographs, but may be cut by the border
    margin = min(0.7 * radius, 0.45)
    place = rng.uniform(margin, 1 - margin, 2)
    cover = parts.place_outline(parts.outline(shape, rng), place, radius, size)
    tint = parts.tint(hue + rng.normal(0, _HUE_SCATTER), rng.uniform(0.1, 0.3))
    _paint(image, cover, pattern, place, radius, grain, warp, rng, tint)
    mask = np.zeros((size, size), dtype=bool)
    mask[cover.window] = cover.share >= 0.5
    if rng.random() < 0.4:
        spot = place + rng.uniform(-radius, radius, 2)
        occluder = parts.place_outline(parts.outline("blob", rng), spot, radius * rng.uniform(0.2, 0.45), size)
        visible = mask.copy()
        visible[occluder.window] &= occluder.share < 0.5
        if visible.sum() >= _MIN_VISIBLE * mask.sum():
            _paint(image, occluder, "plain", spot, radius, grain, warp, rng)
            mask = visible
    return _expose(image, rng), mask


def _distractor_cues(rng: np.random.Generator) -> tuple[str, str]:
    """Outline and pattern that together are no class: a class's outline, or a class's pattern, never both."""
    if rng.random() < 0.5:
        return parts.SHAPES[rng.integers(len(parts.SHAPES))], "plain"
    return "blob", parts.PATTERNS[rng.integers(len(parts.PATTERNS))]


def _paint(
    image: np.ndarray,
    cover: parts.Cover,
    pattern: str,
    place: np.ndarray,
    radius: float,
    grain: np.ndarray,
    warp: np.ndarray,
    rng: np.random.Generator,
    tint: np.ndarray | float = 0.0,
) -> None:
    """Lay a surface of two random, tinted colours, grained and shaded, over the image in place, where `cover` says."""
    window = cover.window
    axis = (np.arange(len(image), dtype=np.float32) + 0.5) / len(image)
    x, y = axis[None, window[1]] - np.float32(place[0]), axis[window[0], None] - np.float32(place[1])
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    period = max(0.08, radius * rng.uniform(0.35, 0.6))
    mix = parts.pattern(pattern, u, v, warp[window], np.float32(period))
    dark, light = parts.colours(1, 0.1, 0.5, rng), parts.colours(1, 0.5, 0.9, rng)
    first, second = (dark + tint, light + tint) if rng.random() < 0.5 else (light + tint, dark + tint)
    shade = (1 + 0.15 * grain[window]) * (1 + np.clip(np.float32(0.2 / radius) * v, -0.3, 0.3))
    surface = (first + (second - first) * mix[:, :, None]) * shade[:, :, None]
    image[window] += (surface - image[window]) * cover.share[:, :, None]


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that falls off to one side, pixel noise, rounding: float [H, W, 3] to uint8."""
    axis = np.linspace(-1, 1, len(image), dtype=np.float32)
    angle, fall_off = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    light = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    gain = np.float32(255 * rng.uniform(0.7, 1.1)) * (1 + np.float32(fall_off) * light)
    exposed = rng.standard_normal(image.shape, dtype=np.float32)
    exposed *= np.float32(255 * rng.uniform(0.01, 0.05))
    exposed += image * gain[:, :, None]
    return np.rint(exposed.clip(0, 255, out=exposed)).astype(np.uint8)
