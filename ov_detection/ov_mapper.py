"""Samples for the detector: detectron2's mapper with large-scale jitter and a random crop, RGB.

Training (F-ViT's recipe): the image is resized to fit a square of `size` times a scale of 0.1 to 2.0, cropped at random
to at most `size`, and flipped with probability one half. (The crop is not detectron2's FixedSizeCrop, which has one
random number for both axes and so cuts along the diagonal only.) Objects that the crop cuts down to less than 0.01
pixels are dropped; a crop without objects stays, as one of background. With masks, boxes are drawn anew around the
cropped masks.

Test: the image is resized to fit the square. Nothing is padded here: the model pads with zeros after normalising.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from last_vit.data.coco import encode_segmentation

SCALES = (0.1, 2.0)
MIN_BOX_SIDE = 0.01


class OvMapper:
    """A record of `load_ov_json` -> the model's input.

    Args:
        size: Side of the square in pixels.
        train: Augment, and give `instances` (gt_boxes, gt_classes; with masks gt_masks).
        masks: Read the segmentations.
        augment: False trains on images as they are tested: every epoch sees the same pixels.

    Raises:
        ValueError: A size that is not positive.
    """

    def __init__(self, size: int, train: bool, masks: bool = False, augment: bool = True) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        augment = augment and train
        resize = T.ResizeScale(*(SCALES if augment else (1.0, 1.0)), size, size)
        steps = [resize, T.RandomCrop("absolute", (size, size)), T.RandomFlip()] if augment else [resize]
        self.train = train
        self.masks = masks
        self._mapper = DatasetMapper(
            train,
            augmentations=steps,
            image_format="RGB",
            use_instance_mask=masks,
            instance_mask_format="bitmask",
            recompute_boxes=masks,
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read and augment one image; random numbers come from torch's generator alone.

        Raises:
            FileNotFoundError: No such image.
            ValueError: An image that cannot be read, or of another size than the record says; a broken mask.
        """
        if self.masks and self.train:
            record = {**record, "annotations": [_with_run_length(entry, record) for entry in record["annotations"]]}
        try:
            with _numpy_seeded_by_torch():
                sample = self._mapper(record)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no image {record['file_name']}") from error
        except (ValueError, OSError, SyntaxError) as error:  # a damaged PNG is a SyntaxError to Pillow
            raise ValueError(f"image {record['file_name']} cannot be used: {error}") from error
        if self.train:
            instances = sample["instances"]
            sample["instances"] = instances[instances.gt_boxes.nonempty(MIN_BOX_SIDE)]
        return sample


def _with_run_length(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The annotation with its mask as run lengths: cropping polygons would need another library, and loses holes."""
    try:
        run_length = encode_segmentation(entry["segmentation"], record["height"], record["width"])
    except ValueError as error:
        raise ValueError(f"image {record['file_name']} has a broken mask: {error}") from error
    return {**entry, "segmentation": run_length}


@contextmanager
def _numpy_seeded_by_torch() -> Iterator[None]:
    """For the block, numpy's global generator, which detectron2 augments with, follows torch's; then it is put back."""
    state = np.random.get_state()
    try:
        np.random.seed(int(torch.randint(2**32, ())))
        yield
    finally:
        np.random.set_state(state)
