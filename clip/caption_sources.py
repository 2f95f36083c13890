"""Images with captions, for train_clip.py's own types of data: COCO, class folders with templates, drawn images.

A source has a length and `sample(index) -> (RGB image, captions)`, which raises for a faulty sample.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from class_names import find_class_names
from clip_train_options import CLASSES, COCO, DEFAULT_TEMPLATE
from coco_captions import CocoCaptions
from PIL import Image

from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet_layout import find_split_folder, list_split
from last_vit.data.synthetic import SyntheticObjects

NUM_DRAWN_VAL = 1000


class CaptionSource(Protocol):
    """Images and their captions by index."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> tuple[Image.Image, Sequence[str]]:
        """RGB image and its captions, at least one; ValueError or OSError for a faulty sample."""


class ClassFolder:
    """Class folders of images, captioned with templates.

    Args:
        root: Folder of class folders, or the one above with `train` and `val`, as ImageNet has.
        split: "train" or "val".
        class_names: See `class_names.find_class_names`.
        templates: With {} for the class.

    Raises:
        FileNotFoundError, ValueError: No images, no names for the classes, or a template without {}.
    """

    def __init__(self, root: str | Path, split: str, class_names: str | None, templates: Sequence[str]) -> None:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"--caption-template must hold {{}} once, for the class, got {template!r}")
        folder = Path(root).expanduser()
        has_splits = any((folder / inner / split).is_dir() for inner in (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"))
        listing = list_split(find_split_folder(folder, split) if has_splits or not folder.is_dir() else folder)
        if not listing.classes:
            raise ValueError(f"{folder} holds images without class folders, so what is on them is unknown")
        names = find_class_names(class_names, listing.classes)
        self.image_paths, self.labels = listing.image_paths, listing.labels
        self.captions = [tuple(template.replace("{}", name) for template in templates for name in own) for own in names]

    def __len__(self) -> int:
        return len(self.image_paths)

    def sample(self, index: int) -> tuple[Image.Image, Sequence[str]]:
        """See `CaptionSource`."""
        return load_rgb(self.image_paths[index]), self.captions[self.labels[index]]


class DrawnImages:
    """`SyntheticObjects` with its captions.

    Args:
        num_images: Of the split.
        split: "train" or "val".
        side: Of the square images, in pixels.
    """

    def __init__(self, num_images: int, split: str, side: int) -> None:
        self.objects = SyntheticObjects(num_images, split, image_size=side)

    def __len__(self) -> int:
        return len(self.objects)

    def sample(self, index: int) -> tuple[Image.Image, Sequence[str]]:
        """See `CaptionSource`."""
        drawn = self.objects.render(index)
        return drawn.image, (drawn.caption,)


def open_source(args: argparse.Namespace, is_train: bool, image_hw: tuple[int, int]) -> CaptionSource:
    """The data of one of our types that --train-data or --val-data names.

    Args:
        args: Of the run.
        is_train: Which of the two.
        image_hw: Of the image tower, in pixels; drawn images have its longer side.

    Raises:
        FileNotFoundError, ValueError: As the type's own class.
    """
    path, split = (args.train_data, "train") if is_train else (args.val_data, "val")
    if args.dataset_type == COCO:
        return CocoCaptions(path, split)
    if args.dataset_type == CLASSES:
        return ClassFolder(path, split, args.class_names, args.caption_template or [DEFAULT_TEMPLATE])
    num_drawn = args.train_num_samples if is_train else args.val_num_samples or NUM_DRAWN_VAL
    return DrawnImages(num_drawn, split, max(image_hw))
