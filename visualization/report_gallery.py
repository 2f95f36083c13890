"""The gallery of a report as plain JSON values: pictures, packed maps, and how far the models disagree on an image.

Numbers are packed as the integers that are shown (a score of 0.412 is 412), so what the page displays is exactly the
rounded value. Integers are little-endian, in base64.

Letters: M models, N = h * w patches, G positions along a side of a common grid.
"""

import base64
import io
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image
from report_data import ImageView
from torch import Tensor
from torch.nn.functional import grid_sample

THUMBNAIL, SCORE_DECIMALS = 224, 3
_JPEG_QUALITY, _SAME_FRAME = 82, 1 / THUMBNAIL
_MAX_UINT16, _MAX_DECIMALS = 65535, 3


def disagreement(views: Sequence[ImageView], grids_hw: Sequence[tuple[int, int]]) -> float | None:
    """1 - mean Pearson correlation of the score maps of every two models, on the part of the image that all see.

    Score maps are interpolated bilinearly at the centres of a common grid, as fine as the finest; models of one grid
    and one crop are compared patch by patch.

    Args:
        views: Of one image, one per model.
        grids_hw: (h, w) of each model's grid.

    Returns:
        A value in [0, 2]; None for one model, for crops without common part, and where every pair holds a constant map.
    """
    frames = torch.tensor([view.frame_xyxy for view in views], dtype=torch.float64)
    low, high = frames[:, :2].amax(dim=0), frames[:, 2:].amin(dim=0)
    if len(views) < 2 or bool((high <= low).any()):
        return None
    rows, columns = (max(grid[axis] for grid in grids_hw) for axis in (0, 1))
    x, y = ((torch.arange(count, dtype=torch.float64) + 0.5) / count for count in (columns, rows))
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2) * (high - low) + low  # [rows, columns, 2]
    samples = []
    for view, frame, grid_hw in zip(views, frames, grids_hw, strict=True):
        on_crop = (place - frame[:2]) / (frame[2:] - frame[:2]) * 2 - 1
        score = view.score.double().unflatten(0, grid_hw)
        samples.append(grid_sample(score[None, None], on_crop[None], padding_mode="border", align_corners=False))
    values = torch.cat(samples).flatten(1)
    centred = values - values.mean(dim=1, keepdim=True)
    is_flat = centred.abs().amax(dim=1) <= 1e-6 * values.abs().amax(dim=1)
    found = [
        float(torch.corrcoef(values[[a, b]])[0, 1])
        for a, b in combinations(range(len(views)), 2)
        if not is_flat[a] and not is_flat[b]
    ]
    return 1 - sum(found) / len(found) if found else None


def norm_decimals(views: Sequence[ImageView]) -> int:
    """Decimals of the norms of one model that 16 bits hold, at most 3; negative for norms above 65535."""
    highest = max(float(view.norm.max()) for view in views)
    return min(_MAX_DECIMALS, math.floor(math.log10(_MAX_UINT16 / max(highest, 1e-9))))


def pack_image(picture: Image.Image, views: Sequence[ImageView], decimals: Sequence[int]) -> dict[str, Any]:
    """Everything that the page draws of one image.

    Args:
        picture: The original, RGB.
        views: One per model.
        decimals: Of each model's norms, from `norm_decimals`.

    Returns:
        "thumbnails", JPEG data URIs, one per crop that differs by a pixel or more; "views", one mapping per model.
    """
    thumbnails: list[str] = []
    frames: list[tuple[float, ...]] = []
    packed = []
    for view, num_decimals in zip(views, decimals, strict=True):
        same = [i for i, frame in enumerate(frames) if math.dist(frame, view.frame_xyxy) < _SAME_FRAME]
        if not same:
            frames.append(view.frame_xyxy)
            thumbnails.append(_data_uri(crop_picture(picture, view.frame_xyxy, THUMBNAIL)))
        packed.append(
            {
                "thumbnail": same[0] if same else len(thumbnails) - 1,
                "frame": [round(value, 6) for value in view.frame_xyxy],
                "box": None if view.box_xyxy is None else [round(value, 5) for value in view.box_xyxy],
                "score": _pack(view.score.double() * 10**SCORE_DECIMALS, "<i2"),
                "votes": _pack(view.votes, "<u2"),
                "norm": _pack(view.norm.double() * 10.0**num_decimals, "<u2"),
                "rgb": None if view.rgb is None else _pack(view.rgb * 255, "u1"),
                "object": None if view.is_foreground is None else _pack(view.is_foreground, "u1"),
                "best": view.best,
                "hit": view.is_hit,
                "auroc": view.auroc,
            }
        )
    return {"thumbnails": thumbnails, "views": packed}


def crop_picture(picture: Image.Image, frame_xyxy: Sequence[float], side: int) -> Image.Image:
    """The part of an image that a model sees, at a resolution of its own; black where the frame leaves the image.

    Args:
        picture: The original, RGB.
        frame_xyxy: In shares of its width and height.
        side: Of the result in pixels.
    """
    size = picture.size * 2
    x1, y1, x2, y2 = (share * length for share, length in zip(frame_xyxy, size, strict=True))
    seen = (max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1]))
    scale = (side / (x2 - x1), side / (y2 - y1))
    left, top, right, bottom = (
        round((value - start) * ratio) for value, start, ratio in zip(seen, (x1, y1) * 2, scale * 2, strict=True)
    )
    canvas = Image.new("RGB", (side, side))
    part = picture.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.LANCZOS, box=seen)
    canvas.paste(part, (left, top))
    return canvas


def _pack(values: Tensor, dtype: str) -> str:
    """Rounded values as base64; Python's and torch's rounding of halves to even."""
    whole = values.double().round().numpy().astype(np.dtype(dtype))
    return base64.b64encode(whole.tobytes()).decode("ascii")


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
