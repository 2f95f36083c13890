"""Colours of segmentation classes, for pictures.

VOC's bit pattern gives up to 255 colours that differ, by formula; VOC20 and VOC21 get their official ones from it, and
the other sets the same ones in the order of their classes. Cityscapes has its official colours, which people know.
"""

import numpy as np

from last_vit.data.voc import voc_colors

_CITYSCAPES = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def palette(num_classes: int, has_background: bool = False, dataset: str | None = None) -> np.ndarray:
    """A colour per class.

    Args:
        num_classes: C, the background included.
        has_background: Class 0 is the background and black; without one black is no class's.
        dataset: Key of the data set, for those with colours of their own.

    Returns:
        uint8 [C, 3], RGB, all different.

    Raises:
        ValueError: More classes than colours.

    Example:
        >>> palette(2).tolist(), palette(2, has_background=True).tolist()
        ([[128, 0, 0], [0, 128, 0]], [[0, 0, 0], [128, 0, 0]])
    """
    first = 0 if has_background else 1
    if not 1 <= num_classes <= 256 - first:
        raise ValueError(f"there are colours for 1 to {256 - first} classes, got {num_classes}")
    if dataset == "cityscapes" and num_classes == len(_CITYSCAPES):
        return np.array(_CITYSCAPES, dtype=np.uint8)
    return voc_colors()[first : first + num_classes]
