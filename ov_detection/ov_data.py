"""Open-vocabulary detection sets as what trainers read: torch data sets of detectron2's samples, and their loaders.

Images are read as their files store them, for that is what the boxes are drawn on: an EXIF orientation is left alone.

Training (F-ViT's recipe): the image is resized to fit a square of `size` times a scale of 0.1 to 2.0, cropped at random
to at most `size`, and flipped with probability one half. (The crop is not detectron2's FixedSizeCrop, which has one
random number for both axes and so cuts along the diagonal only.) Objects that the crop cuts down to less than 0.01
pixels are dropped; a crop without objects stays, as one of background. With masks, boxes are drawn anew around the
cropped masks.

Test: the image is resized to fit the square. Nothing is padded here: the model pads with zeros after normalising.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.detection_utils import annotations_to_instances, check_image_size, transform_instance_annotations
from ov_json import load_ov_json
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from last_vit.data.coco import encode_segmentation
from last_vit.data.image_files import load_pixels
from last_vit.data.loaders import build_test_loader, build_train_loader
from last_vit.data.synthetic import SyntheticObjects, write_coco
from last_vit.runtime import get_logger

SCALES = (0.1, 2.0)
MIN_BOX_SIDE = 0.01


class FitSquare(T.Augmentation):
    """Resize an image to fit a square of `size` pixels times a scale drawn from `scales`; sides are rounded as in mmcv.

    By default pixels are those of OpenCV's bilinear resize, within a level of 255: shrinking skips pixels, as in F-ViT.
    With `antialias` they are Pillow's, and shrinking takes means.
    """

    def __init__(self, size: int, scales: tuple[float, float] = (1.0, 1.0), antialias: bool = False) -> None:
        super().__init__()
        self.size, self.scales = size, scales
        self._kind = T.ResizeTransform if antialias else SampledResize

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """For an image [H, W, 3]."""
        height, width = image.shape[:2]
        factor = max(1, int(self.size * np.random.uniform(*self.scales))) / max(height, width)
        return self._kind(height, width, *(max(1, int(side * factor + 0.5)) for side in (height, width)))


class SampledResize(T.ResizeTransform):
    """detectron2's, but images (not masks) are resized without antialiasing."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """uint8 [H, W, 3] -> [new_h, new_w, 3]; as detectron2's with `interp`."""
        if interp is not None:
            return super().apply_image(img, interp)
        planes = torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, (self.new_h, self.new_w), mode="bilinear", align_corners=False)
        return planes[0].permute(1, 2, 0).round().byte().numpy()


class OvImageSet(Dataset):
    """The images of a JSON file (see `load_ov_json`), brought to a square of `size` pixels, one sample per image.

    With `train` samples are augmented and have `instances` (gt_boxes, gt_classes; with `masks` gt_masks) of base
    classes; `augment=False` trains on images as they are tested, so that every epoch sees the same pixels, and `keep`
    then makes each sample once per process. `max_images` keeps the first ones by image id, `antialias` is
    `FitSquare`'s. Random numbers come from torch's generator alone.

    An image that cannot be read, of another size than its record says, or with a broken mask is a ValueError when it is
    asked for.
    """

    def __init__(
        self,
        json_file: str | Path,
        image_root: str | Path,
        size: int,
        train: bool,
        masks: bool = False,
        novel: Iterable[str] | None = None,
        augment: bool = True,
        max_images: int | None = None,
        antialias: bool = False,
        keep: bool = False,
    ) -> None:
        for name, value in (("size", size), ("max_images", max_images)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._train, self._masks = train, masks and train
        augment = augment and train
        if keep and augment:
            raise ValueError("keep=True would show the same crops in every epoch: it is for augment=False")
        self._kept: dict[int, dict[str, Any]] | None = {} if keep else None
        steps = [FitSquare(size, SCALES if augment else (1.0, 1.0), antialias)]
        steps += [T.RandomCrop("absolute", (size, size)), T.RandomFlip()] if augment else []
        self._augment = T.AugmentationList(steps)
        self.json_file, self.size = Path(json_file), size
        self.novel = None if novel is None else tuple(novel)
        images = load_ov_json(json_file, image_root, train, masks, self.novel)
        self.classes = images.classes
        records = images.records[:max_images]
        self.image_ids = tuple(record["image_id"] for record in records)
        self._records = DatasetFromList(records, copy=False)
        for reason, count in images.left_out.items():
            get_logger().info("%s: left out %d x %s", self.json_file.name, count, reason)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        record = self._records[index]
        try:
            sample = self._sample(record)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no image {record['file_name']}") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"image {record['file_name']} cannot be used: {error}") from error
        if self._kept is not None:
            self._kept[index] = sample
        return sample

    def _sample(self, record: dict[str, Any]) -> dict[str, Any]:
        sample = {name: value for name, value in record.items() if name != "annotations"}
        image = T.AugInput(load_pixels(record["file_name"]))
        check_image_size(sample, image.image)
        with _numpy_seeded_by_torch():
            transforms = self._augment(image)
        shape = image.image.shape[:2]
        sample["image"] = torch.from_numpy(image.image.transpose(2, 0, 1).copy())
        if self._train:
            objects = [{**entry} for entry in record["annotations"]]
            for entry in (
                objects if self._masks else ()
            ):  # cropping polygons would need another library, and loses holes
                entry["segmentation"] = encode_segmentation(entry["segmentation"], record["height"], record["width"])
            objects = [transform_instance_annotations(entry, transforms, shape) for entry in objects]
            instances = annotations_to_instances(objects, shape, mask_format="bitmask")
            if self._masks and objects:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
            sample["instances"] = instances[instances.gt_boxes.nonempty(MIN_BOX_SIDE)]
        return sample


def synthetic_ov_set(
    folder: str | Path,
    split: str,
    num_images: int,
    size: int,
    num_classes: int,
    num_novel: int,
    masks: bool,
    augment: bool,
) -> OvImageSet:
    """Synthetic images with one labelled object each; the last `num_novel` classes are novel.

    They are written to `folder` in COCO's layout when they are first asked for; several processes may ask at once.
    `split` is "train" or "val", the other arguments are those of `SyntheticObjects` and `OvImageSet`.
    """
    samples = SyntheticObjects(num_images, split, size, num_classes)
    final = Path(folder) / f"{split}_{num_images}_{size}px_{num_classes}"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=final.parent)
        write_coco(samples, temporary)
        try:
            os.rename(temporary, final)
        except OSError:  # another process was faster: what it wrote is the same
            shutil.rmtree(temporary)
    json_file, images = final / f"annotations/instances_{split}2017.json", final / f"{split}2017"
    novel = samples.classes[num_classes - num_novel :]
    return OvImageSet(json_file, images, size, split == "train", masks, novel, augment)


def build_ov_train_loader(dataset: OvImageSet, batch_size: int, num_workers: int, seed: int = 0) -> DataLoader:
    """`build_train_loader` with detectron2's batches: lists of samples."""
    return build_train_loader(dataset, batch_size, num_workers, seed, collate=trivial_batch_collator)


def build_ov_test_loader(dataset: OvImageSet, batch_size: int, num_workers: int) -> DataLoader:
    """`build_test_loader` with detectron2's batches: lists of samples."""
    return build_test_loader(dataset, batch_size, num_workers, collate=trivial_batch_collator)


@contextmanager
def _numpy_seeded_by_torch() -> Iterator[None]:
    """For the block, numpy's global generator, which detectron2 augments with, follows torch's; then it is put back."""
    state = np.random.get_state()
    try:
        np.random.seed(int(torch.randint(2**32, ())))
        yield
    finally:
        np.random.set_state(state)
