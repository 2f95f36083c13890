"""Detections drawn on their image: a box, its class and score, and the mask where there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as mask_tools

# Okabe and Ito's colours, told apart also by the colour-blind; classes take them in turn
_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_SHORT_SIDE = 480  # smaller images are enlarged, for their labels to be readable


def read_rgb(path: Path) -> np.ndarray:
    """An image file, upright -> uint8 [H, W, 3] RGB.

    Raises:
        ValueError: Not an image, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:  # a damaged PNG is a SyntaxError to Pillow
        raise ValueError(f"image {path} cannot be read: {error}") from error


def draw_detections(pixels: np.ndarray, found: Sequence[dict[str, Any]], names: Sequence[str], target: Path) -> None:
    """Write a picture; the best detections lie on top.

    Args:
        pixels: uint8 [H, W, 3] RGB.
        found: As predict.py describes detections, best first.
        names: The vocabulary, whose order gives the colours.
        target: File to write; its folder is made when missing.
    """
    height, width = pixels.shape[:2]
    scale = max(1.0, _SHORT_SIDE / min(height, width))
    image = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    line = max(2, round(min(image.size) / 200))
    font = ImageFont.load_default(size=6 * line)
    for entry in reversed(found):
        color = _COLORS[names.index(entry["class"]) % len(_COLORS)]
        if "segmentation" in entry:
            mask = Image.fromarray(mask_tools.decode(entry["segmentation"]) * np.uint8(110))  # of 255: see-through
            image.paste(color, mask=mask.resize(image.size))
        box = [side * scale for side in entry["box_xyxy"]]
        draw = ImageDraw.Draw(image)
        draw.rectangle(box, outline=color, width=line)
        _draw_label(draw, f"{entry['class']} {entry['score']:.2f}", box, color, font, image.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, box: list[float], color: str, font: Any, image_size: tuple[int, int]
) -> None:
    """Black text on the box's colour, above its upper left corner or, where there is no room, just inside."""
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = max(0, min(box[0], image_size[0] - right - 4))
    y = box[1] - bottom - 4 if box[1] >= bottom + 4 else box[1]
    draw.rectangle((x, y, x + right + 4, y + bottom + 4), fill=color)
    draw.text((x + 2, y + 1), text, fill="white" if color == "#0072b2" else "black", font=font)
