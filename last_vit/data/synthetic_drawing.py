"""Draws the scenes of `synthetic.py`: outlines, surface patterns, broad-spectrum noise, colours, and their composition.

Functions of a numpy generator and sizes; they know nothing of classes, data sets or files.

Frames: outlines are polygons around (0, 0) inside the unit circle; `centre` and `radius` place them in units of the
image's side, x to the right and y down. Images and fields are float32 [H, W] or [H, W, 3].
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
PATTERNS = ("striped", "checked", "spotted", "ringed", "marbled")
BACKGROUND_SLOPE = {"smooth": 2.2, "cloudy": 1.6, "grainy": 0.9, "patchy": 1.4}
BACKGROUNDS = tuple(BACKGROUND_SLOPE)
_OVERSAMPLING = 4  # masks are drawn this much larger and averaged down, which antialiases their edges
_RADIUS = (0.15, 0.55)  # of the object's circumscribed circle, in image sides
_HUE_SCATTER = 0.4  # standard deviation within a class, radians
_MIN_VISIBLE = 0.6  # share of the object that occluders must leave
_TURNS = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURNS), np.sin(_TURNS)], axis=1)
_ARC = np.roll(_CIRCLE, 18, axis=0)[:37]  # from -135 to 135 degrees


def outline(shape: str, rng: np.random.Generator) -> np.ndarray:
    """The outline of one of `SHAPES`, or of a "blob" of no family, with individual proportions, dents and orientation.

    A polygon [V, 2] of (x, y), farthest vertex at distance 1. "ring" is drawn as one polygon with a slit.
    """
    turns, circle = _TURNS, _CIRCLE
    if shape == "blob":
        waves = sum(rng.normal(0, 0.5 / k) * np.sin(k * turns + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
        points = circle * np.exp(0.5 * waves)[:, None]
    elif shape == "disc":
        points = circle
    elif shape == "ring":
        hole = rng.uniform(0.4, 0.6)
        points = np.concatenate([circle, circle[:1], hole * circle[:1], hole * circle[::-1]])
    elif shape == "crescent":
        # three quarters of the circle, closed by an arc that bends the same way
        bend = rng.uniform(0.3, 0.5)
        inner = _ARC[::-1] * [bend, 1] + [(1 - bend) * _ARC[0, 0], 0]
        points = np.concatenate([_ARC, inner])
    elif shape == "heart":
        height = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        points = np.stack([np.sin(turns) ** 3, -height / 16], axis=1)
    elif shape in ("square", "triangle"):
        points = _regular_polygon(4 if shape == "square" else 3)
    elif shape == "star":
        points = _regular_polygon(10)
        points[1::2] *= rng.uniform(0.38, 0.5)
    else:  # cross
        arm = rng.uniform(0.25, 0.36)
        quarter = np.array([[arm, arm], [1, arm], [1, -arm]])
        points = np.concatenate([quarter @ _rotation(-k * np.pi / 2).T for k in range(4)])
    # one smooth dent (a radial wave), unequal axes, any orientation: no two objects of a class are alike
    angle = np.arctan2(points[:, 1], points[:, 0])
    dent = 1 + rng.uniform(0, 0.08) * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 2 * np.pi))
    stretched = points * dent[:, None] * [1, rng.uniform(0.7, 1)]
    turned = stretched @ _rotation(rng.uniform(0, 2 * np.pi)).T
    return turned / np.hypot(turned[:, 0], turned[:, 1]).max()


class Cover(NamedTuple):
    """A placed outline: which window of the image it touches, and the share of each of its pixels that it covers."""

    window: tuple[slice, slice]
    share: np.ndarray  # float32, the window's shape, in [0, 1]


def place_outline(polygon: np.ndarray, centre: np.ndarray, radius: float, size: int) -> Cover:
    """Draw an outline of a radius around a centre (in image sides) on an image of `size` x `size` pixels."""
    low = np.floor((centre - radius) * size).astype(int).clip(0, size - 1)
    high = np.ceil((centre + radius) * size).astype(int).clip(low + 1, size)
    canvas = Image.new("L", tuple(((high - low) * _OVERSAMPLING).tolist()))
    points = (polygon * radius + centre) * (size * _OVERSAMPLING) - low * _OVERSAMPLING
    ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=255)
    share = np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    return Cover(np.s_[low[1] : high[1], low[0] : high[0]], share)


def noise_fields(slopes: Sequence[float], size: int, rng: np.random.Generator) -> np.ndarray:
    """Independent fields with amplitude spectra 1 / f^slope, like photographs' (slope near 1), mean 0 and variance 1.

    float32 [len(slopes), size, size].
    """
    # the spectrum of white noise is white noise, so it is drawn there, which saves a transform
    parts = rng.standard_normal((len(slopes), size, size // 2 + 1, 2), dtype=np.float32)
    spectrum = parts.view(np.complex64)[..., 0] * np.stack([_spectral_gain(size, slope) for slope in slopes])
    return np.fft.irfft2(spectrum, s=(size, size))


def surface_pattern(name: str, u: np.ndarray, v: np.ndarray, warp: np.ndarray, period: float) -> np.ndarray:
    """A surface pattern as the mixing weight of two colours, bent by a noise field so that no grating is pure.

    `name` is one of `PATTERNS`, or "plain"; u and v [H, W] are coordinates on the object, 0 at its centre, in units of
    the image's side, as is `period`; `warp` [H, W] has standard deviation 1. float32 [H, W] in [0, 1].
    """
    if name == "plain":
        return 0.5 + 0.15 * warp.clip(-2, 2)
    bend = 0.9 * warp
    a, b = u * (2 * np.pi / period) + bend, v * (2 * np.pi / period) - bend
    if name == "striped":
        wave = np.sin(a)
    elif name == "checked":
        wave = 2 * np.sin(a / 1.5) * np.sin(b / 1.5)
    elif name == "spotted":
        wave = np.cos(a) + np.cos(b) - 0.7
    elif name == "ringed":
        wave = np.sin(np.hypot(u, v) * (2 * np.pi / period) + bend)
    else:  # marbled
        wave = 1 - 3 * np.abs(np.sin(1.5 * warp + 0.3 * a))
    return 1 / (1 + np.exp(-4 * wave))


def background(kind: str, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scene without objects, float32 [H, W, 3]: three colours mixed by two noise fields [H, W].

    The first field is the main one; its spectral slope is to be `BACKGROUND_SLOPE[kind]`.
    """
    if kind == "patchy":
        first = np.sign(first) * 0.8 + 0.3 * second
    base, other, tint = colours(3, 0.1, 0.9, rng)
    mix = (0.5 + 0.35 * first)[:, :, None].clip(0, 1)
    return base + (other - base) * mix + (tint - base) * (0.12 * second)[:, :, None]


def draw_clutter(image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw flat-coloured scraps (strokes and polygons, 2% to 20% of the side) anywhere: [H, W, 3] in and out."""
    size = image.shape[0]
    canvas = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    fills = (255 * colours(count, 0.05, 0.95, rng)).astype(int).tolist()
    corners = rng.uniform(0, size, (count, 1, 2)) + rng.normal(0, 0.07 * size, (count, 5, 2))
    numbers = rng.integers(2, 6, count)
    widths = (rng.uniform(0.01, 0.04, count) * size).round().clip(1).astype(int)
    for fill, points, number, width in zip(fills, corners, numbers, widths.tolist(), strict=True):
        points = points[:number].ravel().tolist()
        if number == 2:
            draw.line(points, fill=tuple(fill), width=width)
        else:
            draw.polygon(points, fill=tuple(fill))
    return np.asarray(canvas, dtype=np.float32) / 255


def colours(count: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Mostly muted colours: a grey in [low, high] and a tint. float32 [count, 3] in [0, 1]."""
    grey = rng.uniform(low, high, (count, 1))
    return (grey + rng.normal(0, 0.12, (count, 3))).clip(0, 1).astype(np.float32)


def hue_shift(hue: float, strength: float) -> np.ndarray:
    """A shift towards a hue (radians, 0 is red) that leaves the brightness alone: float32 [3], sums to 0."""
    thirds = np.arange(3) * (2 * np.pi / 3)
    return (strength * np.cos(hue - thirds)).astype(np.float32)


@lru_cache(maxsize=16)
def _spectral_gain(size: int, slope: float) -> np.ndarray:
    """float32 [size, size // 2 + 1]: amplitude 1 / f^slope without a constant part, for fields of variance 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    gain = frequency**-slope
    gain *= size**2 / np.sqrt(2 * (gain**2).sum())  # Parseval; complex noise has variance 2
    return gain[:, : size // 2 + 1].astype(np.float32)


def _regular_polygon(vertices: int) -> np.ndarray:
    turns = np.arange(vertices) * (2 * np.pi / vertices)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def compose(
    shape: str, pattern: str, hue: float, kind: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene back to front: uint8 [size, size, 3], and the object's visible mask, bool [size, size]."""
    slopes = (BACKGROUND_SLOPE[kind], 1.0, 1.0, 2.0)
    first, second, grain, warp = noise_fields(slopes, size, rng)
    image = draw_clutter(background(kind, first, second, rng), int(rng.integers(4, 12)), rng)
    radius = rng.uniform(*_RADIUS)
    for _ in range(rng.integers(1, 4)):
        distractor_shape, distractor_pattern = _distractor_cues(rng)
        place = rng.uniform(0, 1, 2)
        cover = place_outline(outline(distractor_shape, rng), place, radius * rng.uniform(0.3, 0.6), size)
        _paint(image, cover, distractor_pattern, place, radius, grain, warp, rng)
    # larger objects keep nearer to the centre, as in photographs, but may be cut by the border
    margin = min(0.7 * radius, 0.45)
    place = rng.uniform(margin, 1 - margin, 2)
    cover = place_outline(outline(shape, rng), place, radius, size)
    tint = hue_shift(hue + rng.normal(0, _HUE_SCATTER), rng.uniform(0.1, 0.3))
    _paint(image, cover, pattern, place, radius, grain, warp, rng, tint)
    mask = np.zeros((size, size), dtype=bool)
    mask[cover.window] = cover.share >= 0.5
    if rng.random() < 0.4:
        spot = place + rng.uniform(-radius, radius, 2)
        occluder = place_outline(outline("blob", rng), spot, radius * rng.uniform(0.2, 0.45), size)
        visible = mask.copy()
        visible[occluder.window] &= occluder.share < 0.5
        if visible.sum() >= _MIN_VISIBLE * mask.sum():
            _paint(image, occluder, "plain", spot, radius, grain, warp, rng)
            mask = visible
    return _expose(image, rng), mask


def _distractor_cues(rng: np.random.Generator) -> tuple[str, str]:
    """Outline and pattern that together are no class: a class's outline, or a class's pattern, never both."""
    if rng.random() < 0.5:
        return SHAPES[rng.integers(len(SHAPES))], "plain"
    return "blob", PATTERNS[rng.integers(len(PATTERNS))]


def _paint(
    image: np.ndarray,
    cover: Cover,
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
    mix = surface_pattern(pattern, u, v, warp[window], np.float32(period))
    dark, light = colours(1, 0.1, 0.5, rng), colours(1, 0.5, 0.9, rng)
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
