"""The segmentation benchmarks as data sets: original images with a class per pixel, whatever way their labels lie.

    settings = find_setting("voc20", "sclip")                    # names, sizes, thresholds: seg_settings.py
    images = SegmentationSet("voc20", "VOCdevkit/VOC2012")
    images[0]                                                    # {"image", "label", "index", "name"}

Where files lie is seg_layouts.py's business. Everything that would make a number silently wrong is an error: a set that
is not whole, labels of another size than their image, ids that are no class, colours in place of indices.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from class_names import ClassNames
from seg_class_names import DISPLAY_NAMES
from seg_id_tables import apply_table
from seg_layouts import find_custom_files, find_files, find_split
from seg_palette import palette
from seg_settings import (
    CUSTOM,
    DATASETS,
    IGNORED,
    PROTOCOLS,
    SEGMENTATION_SETTINGS,
    SegmentationSetting,
    custom_setting,
    find_setting,
)
from torch import Tensor
from torch.utils.data import Dataset

from last_vit.data.image_files import load_mask, load_rgb

__all__ = [
    "CUSTOM", "DATASETS", "IGNORED", "PROTOCOLS", "SEGMENTATION_SETTINGS", "SegmentationSet", "SegmentationSetting",
    "custom_setting", "find_setting",
]  # fmt: skip


class SegmentationSet(Dataset):
    """Images of one split with their labels, both at their original size.

    A sample is a dict: `image` uint8 [3, H, W], RGB; `label` uint8 [H, W], 0 to C - 1 or 255, ignored; `index`, the
    image's place in this set; `name`, its path below the images' folder without ending.

    Attributes:
        dataset, split: As given.
        names: One plain name per class, for tables and legends.
        image_names: `name` of each sample.
        expected_images: Official number of images; None for a custom set.

    Args:
        dataset: One of `DATASETS`, or "custom".
        root: Of the data set, see seg_layouts.py.
        split: "val", or another split of the data set.
        any_count: Take a part of a data set, too; without this another number of images than the official is an error.
        class_names: Of a custom set, in the order of the labels.
        zero_label: Of a custom set, what 0 means in its files; see `custom_setting`.

    Raises:
        FileNotFoundError: Wrong root, or images without labels.
        ValueError: Another data set or split; another number of images; class names for an official set, or none for a
            custom one.

    Example:
        images = SegmentationSet("custom", "rooms", class_names=read_class_names("rooms/classes.txt"))
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
        if dataset not in (*DATASETS, CUSTOM):
            raise ValueError(f"data set must be one of {', '.join((*DATASETS, CUSTOM))}, got {dataset!r}")
        if (class_names is None) == (dataset == CUSTOM):
            raise ValueError(
                "a custom data set needs its class names, one line per class in a file"
                if dataset == CUSTOM
                else f"{dataset} has its own class names; give other names to the model, or take data set {CUSTOM!r}"
            )
        self.dataset, self.split = dataset, split
        if dataset == CUSTOM:
            setting = custom_setting(PROTOCOLS[0], class_names, zero_label)
            self.names = tuple(names[0] for names in class_names)
            self.expected_images = None
            files = find_custom_files(root, split)
        else:
            setting = find_setting(dataset, PROTOCOLS[0])
            self.names = DISPLAY_NAMES[dataset]
            self.expected_images = find_split(dataset, split)[1]
            files = find_files(dataset, root, split)
        self.has_background = setting.has_background
        self._reduces_zero = setting.reduce_zero_label
        self._images, self._labels, self.image_names, self._table = (
            files.images,
            files.labels,
            files.names,
            files.table,
        )
        if not any_count and not self.is_complete:
            raise ValueError(
                f"{dataset} {split} in {root} has {len(self)} images, the official set {self.expected_images}: "
                "its mIoU would be another number; to measure a part on purpose say so (any_count)"
            )

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_classes(self) -> int:
        """C, the background included."""
        return len(self.names)

    @property
    def is_complete(self) -> bool:
        """Whether the number of images is the official one; a custom set always is complete."""
        return self.expected_images in (None, len(self))

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self._images[index]

    def label_path(self, index: int) -> Path:
        """The label's file."""
        return self._labels[index]

    def palette(self) -> np.ndarray:
        """A colour per class: uint8 [C, 3], RGB."""
        return palette(self.num_classes, self.has_background, self.dataset)

    def label(self, index: int) -> Tensor:
        """Class of each pixel: uint8 [H, W], 0 to C - 1 or 255, ignored.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A file that is no map of indices, or holds one that is no class.
        """
        path = self._labels[index]
        values = load_mask(path).astype(np.uint8)
        try:
            return torch.from_numpy(self._classes(values))
        except ValueError as error:
            raise ValueError(f"label {path}: {error}") from error

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(np.array(load_rgb(self._images[index]))).permute(2, 0, 1).contiguous()
        label = self.label(index)
        if image.shape[1:] != label.shape:
            (height, width), (label_height, label_width) = image.shape[1:], label.shape
            raise ValueError(
                f"label {self._labels[index]} has {label_width} x {label_height} pixels, its image "
                f"{self._images[index]} {width} x {height}: they are not of one data set"
            )
        return {"image": image, "label": label, "index": index, "name": self.image_names[index]}

    def _classes(self, values: np.ndarray) -> np.ndarray:
        """What a file holds -> classes, uint8 [H, W]."""
        if self._table is not None:
            return apply_table(values, self._table)
        if self._reduces_zero:
            values = np.where(values == IGNORED, np.uint8(IGNORED), values - np.uint8(1))  # 0 - 1 is 255, too
        wrong = np.unique(values[(values >= self.num_classes) & (values != IGNORED)])
        if wrong.size:
            first = int(self._reduces_zero)
            found = ", ".join(str(value + first) for value in wrong[:8].tolist())
            ignored = f"0 and {IGNORED}" if first else IGNORED
            raise ValueError(
                f"it holds {found}, which is no class: classes are {first} to {self.num_classes - 1 + first}, and "
                f"{ignored} ignored. Are these another data set's labels, or raw ids to be converted?"
            )
        return values
