"""The segmentation benchmarks as data sets: original images with a class per pixel, whatever way their labels lie.

Where files lie is seg_layouts.py's business. Everything that would make a number silently wrong is an error: a set that
is not whole, labels of another size than their image, ids that are no class, colours in place of indices.

`resize_short_side` makes of them what the protocols give to a model, by mmcv's `imrescale`, whose bilinear
interpolation does not smooth before shrinking. Labels stay at their own size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from class_names import ClassNames
from seg_id_tables import apply_table
from seg_layouts import find_custom_files, find_files, find_split
from seg_settings import CUSTOM, IGNORED, PROTOCOLS, custom_setting, display_names, find_setting
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from last_vit.data.image_files import load_mask, load_rgb

MAX_LONG_SIDE = 2048


class SegmentationSet(Dataset):
    """Images of one split with their labels, both at their original size.

    A sample is a dict: `image` uint8 [3, H, W], RGB; `label` uint8 [H, W], 0 to C - 1 or 255, ignored; `index`, the
    image's place in this set; `name`, its path below the images' folder without ending.

    `dataset` is one of `DATASETS`, or "custom", with `class_names` and `zero_label` as in `custom_setting`. Without
    `any_count` another number of images than the official one, `expected_images`, is an error. `names` has one plain
    name per class.
    """

    def __init__(
        self,
        dataset: str,
        root: str | Path,
        split: str = "val",
        any_count: bool = False,
        class_names: ClassNames | None = None,
        zero_label: str = "class",
    ) -> None:
        self.dataset = dataset
        if dataset == CUSTOM:
            self.setting = custom_setting(PROTOCOLS[0], class_names, zero_label)
            self.names = tuple(names[0] for names in class_names)
            self.expected_images, self.files = None, find_custom_files(root, split)
        else:
            self.setting, self.names = find_setting(dataset, PROTOCOLS[0]), display_names(dataset)
            self.expected_images, self.files = find_split(dataset, split)[1], find_files(dataset, root, split)
        if not any_count and not self.is_complete:
            raise ValueError(
                f"{dataset} {split} in {root} has {len(self)} images, the official set {self.expected_images}: "
                "its mIoU would be another number; to measure a part on purpose say so (any_count)"
            )

    def __len__(self) -> int:
        return len(self.files.images)

    @property
    def is_complete(self) -> bool:
        """Whether the number of images is the official one; a custom set always is complete."""
        return self.expected_images in (None, len(self))

    def label(self, index: int) -> Tensor:
        """Class of each pixel: uint8 [H, W], 0 to C - 1 or 255, ignored; ValueError for a file of other values."""
        path = self.files.labels[index]
        values = load_mask(path).astype(np.uint8)
        try:
            return torch.from_numpy(self._classes(values))
        except ValueError as error:
            raise ValueError(f"label {path}: {error}") from error

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files.images[index], self.label(index)
        image = torch.from_numpy(np.array(load_rgb(path))).permute(2, 0, 1).contiguous()
        if image.shape[1:] != label.shape:
            (height, width), (label_height, label_width) = image.shape[1:], label.shape
            raise ValueError(
                f"label {self.files.labels[index]} has {label_width} x {label_height} pixels, its image {path} "
                f"{width} x {height}: they are not of one data set"
            )
        return {"image": image, "label": label, "index": index, "name": self.files.names[index]}

    def _classes(self, values: np.ndarray) -> np.ndarray:
        """What a file holds -> classes, uint8 [H, W]."""
        if self.files.table is not None:
            return apply_table(values, self.files.table)
        first = int(self.setting.reduce_zero_label)
        if first:
            values = np.where(values == IGNORED, np.uint8(IGNORED), values - np.uint8(1))  # 0 - 1 is 255, too
        wrong = np.unique(values[(values >= len(self.names)) & (values != IGNORED)])
        if wrong.size:
            found = ", ".join(str(value + first) for value in wrong[:8].tolist())
            ignored = f"0 and {IGNORED}" if first else IGNORED
            raise ValueError(
                f"it holds {found}, which is no class: classes are {first} to {len(self.names) - 1 + first}, and "
                f"{ignored} ignored. Are these another data set's labels, or raw ids to be converted?"
            )
        return values


def resize_short_side(image: Tensor, short_side: int) -> Tensor:
    """Bring the shorter side of uint8 [3, H, W] to a length, aspect kept, unless the longer one would pass 2048 pixels.

    Sizes and interpolation are mmcv's (bilinear, corners not aligned, no antialias). OpenCV, behind mmcv, rounds its
    weights to 11 bits, so single values may differ from it by 1.

    Example:
        >>> resize_short_side(torch.zeros(3, 375, 500, dtype=torch.uint8), 336).shape
        torch.Size([3, 336, 448])
    """
    sides = image.shape[1:]
    factor = min(MAX_LONG_SIDE / max(sides), short_side / min(sides))
    size = tuple(max(1, int(side * factor + 0.5)) for side in sides)
    if size == tuple(sides):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)
    return resized[0].add_(0.5).to(torch.uint8)


def resize_samples(samples: list[dict[str, Any]], short_side: int) -> list[dict[str, Any]]:
    """Samples of a `SegmentationSet` whose `image` is uint8 [3, H', W'], as the model sees it: what loaders collate by.

    The original is left out: it would be the largest thing that goes from loading processes to a GPU, for nothing.
    """
    return [{**sample, "image": resize_short_side(sample["image"], short_side)} for sample in samples]
