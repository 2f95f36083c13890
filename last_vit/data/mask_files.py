"""Masks from files: one image per file, one whole number or truth value per pixel.

PNG as VOC, ADE20K and others write their segmentations (a palette or 8-bit grey, whose values are indices), or NumPy's
.npy as SAM's masks are kept. What the values mean is the caller's business.
"""

from pathlib import Path

import numpy as np
from PIL import Image

MASK_SUFFIXES = (".png", ".npy")
_INDEX_MODES = ("P", "L", "1")  # Pillow's modes of one 8-bit or 1-bit index per pixel


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask by its ending, one of `MASK_SUFFIXES`.

    Args:
        path: A one-channel PNG of 1 or 8 bits, or an .npy with [H, W] or [1, H, W].

    Returns:
        [H, W]: bool for a 1-bit PNG and a boolean array, uint8 for another PNG, an array's own integers else.

    Raises:
        OSError: The file cannot be opened or read: FileNotFoundError and the like.
        ValueError: Another ending, corrupt content, colours in place of indices, or an array that is no mask; the
            message names the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MASK_SUFFIXES:
        raise ValueError(f"mask {path} must end in {' or '.join(MASK_SUFFIXES)}")
    try:
        return _load_png(path) if suffix == ".png" else _load_array(path)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's own error says nothing about the content
        raise ValueError(f"mask {path} cannot be read: {error}") from error


def _load_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in _INDEX_MODES:
            raise ValueError(
                f"its mode is {image.mode} ({len(image.getbands())} channels), expected one channel of indices: a "
                "palette (P), 8-bit grey (L) or 1-bit PNG. Where colours stand for objects, convert them to indices"
            )
        return np.array(image)


def _load_array(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    if values.ndim == 3 and len(values) == 1:  # SAM's leading axis of one mask
        values = values[0]
    is_whole = values.dtype == bool or np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or not is_whole:
        raise ValueError(f"it is {values.dtype} {list(values.shape)}, expected booleans or integers [H, W]")
    return values
