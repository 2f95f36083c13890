"""ImageNet (and whatever shares its layout, such as Tiny-ImageNet): images, labels and, when asked for, XML boxes.

Annotations are read once, when the data set is built; images are decoded when they are asked for. Nothing is left out
silently: by default a fault stops with the file's name, with `skip_broken` it is counted in `skipped`, and images that
`single_object` and `max_box_area` rule out are counted in `filtered`.

Frames: `box_xyxy` and `image_hw` are in the frame of the image's XML, whose values are taken as they stand (ImageNet's
are not corrected by a pixel, the release's neither). Where the XML describes a scaled version of the image, both are in
that scale, which the evaluation transforms cancel; where it describes another shape, the image is a fault.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import get_dimensions, pil_to_tensor

from last_vit.boxes import is_small_box
from last_vit.data.image_files import load_rgb, verify_image
from last_vit.data.imagenet_layout import (
    annotation_finder,
    find_annotation_folder,
    find_folder,
    find_split_folder,
    has_split,
    list_split,
    number_classes,
)
from last_vit.data.voc import ImageAnnotation, read_voc_xml
from last_vit.runtime import get_logger, progress

NO_BOX = (float("nan"),) * 4
_FRAME_TOLERANCE = 0.02  # relative difference of the aspect ratios of file and XML: rounding of a scaled frame


class ImageNetDataset(Dataset):
    """A split of ImageNet, or of whatever shares its layout.

    A sample is a dict: `image` (the transform's result, or uint8 [3, height, width] without one), `label` (-1 where
    unknown), `index` (into this data set), `box_xyxy` float32 [4] in original pixels (NaN when there is no object or
    several), `image_hw` int64 [2], the original (height, width), and `num_objects` (-1 when boxes were not read).

    Attributes: `classes`, class folder names in the order of the labels; `image_paths`; `labels`, int64 [len];
    `boxes_xyxy`, `image_hw`, `num_objects`, float32 [len, 4], int64 [len, 2], int64 [len], None unless `boxes`;
    `skipped`, faulty files that were left out, and files that are no images, reason -> count; `filtered`, likewise
    sound images that were not asked for.

    Args:
        root: As in `find_split_folder`.
        split: "train" or "val"; None takes `root` itself for the folder of the class folders (any ImageFolder).
        transform: From a PIL RGB image to a tensor; one with a `load` reads the files itself: path -> what it takes.
        boxes: Read the XML annotations. Each image must have one: the training set, where about 4 in 10 have, needs
            `skip_broken` too.
        annotation_root: Folder of the XML files; None looks in the usual places beside the images.
        single_object: Keep the images with exactly one object. Needs `boxes`.
        max_box_area: Keep the images whose box takes less than this share of the image (release: 0.25). Needs
            `single_object`.
        labelled: False takes any folder of images, flat or nested, which is `root` itself where it has no such split.
            Labels are then -1 unless class folders tell them; `number_as` says which classes a classifier knows.
        skip_broken: Count and leave out unreadable images and annotations instead of stopping, and keep an empty class
            folder as a class without images. Every image file is read once for this, at an eighth of a JPEG's size.

    FileNotFoundError for a wrong root, no image, no annotation folder or a missing annotation; ValueError for arguments
    that contradict each other, an empty class folder, a broken annotation, no labels for a flat folder (unless
    `boxes`), or no image left, and on reading for a broken image.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None,
        transform: Callable[[Image.Image], Tensor] | None = None,
        boxes: bool = False,
        annotation_root: str | Path | None = None,
        single_object: bool = False,
        max_box_area: float | None = None,
        skip_broken: bool = False,
        labelled: bool = True,
    ) -> None:
        if (single_object or annotation_root is not None) and not boxes:
            raise ValueError("single_object and annotation_root are about annotations: they need boxes=True")
        if max_box_area is not None and not single_object:
            raise ValueError("max_box_area looks at the one box of an image: it needs single_object=True")
        if max_box_area is not None and not 0 < max_box_area <= 1:
            raise ValueError(
                f"max_box_area is a share of the image in (0, 1], got {max_box_area}; None keeps all boxes"
            )
        is_folder = split is None or not (labelled or has_split(root, split))
        self.folder = find_folder(root) if is_folder else find_split_folder(root, split)
        self.transform, self.labelled = transform, labelled
        self.skipped, self.filtered = Counter(), Counter()
        listing = list_split(self.folder, labelled)
        if listing.empty_classes and labelled and not skip_broken:
            raise ValueError(
                f"class folder {self.folder / listing.empty_classes[0]} has no image ({len(listing.empty_classes)} "
                "such folders). Restore its images; or remove the folder from all splits, which renumbers the classes "
                "after it; or keep it as a class without images with skip_broken"
            )
        if not listing.classes and labelled and not boxes:
            raise ValueError(
                f"{self.folder} holds images without class folders, so their labels are unknown: sort them into "
                "<wnid>/ folders, or put Kaggle's LOC_val_solution.csv and LOC_synset_mapping.txt beside the folder"
            )
        self.skipped += Counter({"empty class folder": len(listing.empty_classes)}) + listing.others
        self.classes, self._folders, self.image_paths = listing.classes, listing.classes, listing.image_paths
        self.labels = np.array(listing.labels, dtype=np.int64)
        self.boxes_xyxy = self.image_hw = self.num_objects = None
        if boxes:
            self._read_annotations(split or self.folder.name, annotation_root, single_object, max_box_area, skip_broken)
        if skip_broken:
            self._leave_out_broken_images()
        if not self.image_paths:
            raise ValueError(
                f"no image of {self.folder} is left (skipped {dict(self.skipped)}, filtered {dict(self.filtered)}): "
                "check annotation_root, single_object and max_box_area"
            )

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.image_paths[index]
        image = getattr(self.transform, "load", load_rgb)(path)
        _, *pixel_hw = get_dimensions(image)
        if self.num_objects is None:
            image_hw, box, num_objects = pixel_hw, NO_BOX, -1
        else:
            image_hw, box, num_objects = self.image_hw[index], self.boxes_xyxy[index], int(self.num_objects[index])
            check_frame(path, tuple(pixel_hw), tuple(image_hw))
        return {
            "image": pil_to_tensor(image) if self.transform is None else self.transform(image),
            "label": int(self.labels[index]),
            "index": index,
            "box_xyxy": torch.tensor(box, dtype=torch.float32),
            "image_hw": torch.tensor(image_hw, dtype=torch.int64),
            "num_objects": num_objects,
        }

    def number_as(self, num_classes: int) -> None:
        """Number the classes as a classifier of `num_classes` does (see `number_classes`); `classes` are then its.

        Where that cannot be and the images need not be `labelled`, there are no classes, and all labels are -1.
        """
        try:
            numbered = number_classes(self.folder, self._folders, num_classes)
        except ValueError as error:
            if self.labelled:
                raise
            if self._folders:
                get_logger().info("%s is used without labels: %s", self.folder, error)
            numbered = []
        label_of = {name: label for label, name in enumerate(numbered)}
        numbers = np.array([label_of.get(name, -1) for name in [*self.classes, ""]])  # the last is of unknown labels
        self.classes, self.labels = numbered, numbers[self.labels]

    def _read_annotations(
        self,
        split: str,
        annotation_root: str | Path | None,
        single_object: bool,
        max_box_area: float | None,
        skip_broken: bool,
    ) -> None:
        """Fill the box arrays and drop what the filters rule out."""
        find = annotation_finder(find_annotation_folder(self.folder, split, annotation_root))
        kept, boxes, sizes, counts = [], [], [], []
        for index, image_path in enumerate(progress(self.image_paths, "reading boxes", "file")):
            try:
                annotation = _read_annotation(find(image_path), image_path)
            except (FileNotFoundError, ValueError) as error:
                if not skip_broken:
                    raise
                self.skipped["broken annotation" if isinstance(error, ValueError) else "no annotation"] += 1
                continue
            objects = annotation.objects
            if single_object and len(objects) != 1:
                self.filtered["several objects" if objects else "no object"] += 1
                continue
            kept.append(index)
            boxes.append(objects[0][1:] if len(objects) == 1 else NO_BOX)
            sizes.append((annotation.height, annotation.width))
            counts.append(len(objects))
        self._keep(kept)
        exact = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        self.boxes_xyxy = exact.float().numpy()
        self.image_hw = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        self.num_objects = np.array(counts, dtype=np.int64)
        if max_box_area is not None:
            is_small = is_small_box(exact, torch.from_numpy(self.image_hw), max_box_area).numpy()
            self._keep(np.flatnonzero(is_small))
            self.filtered += Counter({"large box": int((~is_small).sum())})

    def _leave_out_broken_images(self) -> None:
        kept = []
        for index, path in enumerate(progress(self.image_paths, "checking images", "file")):
            try:
                pixel_hw = verify_image(path)
            except ValueError:
                self.skipped["broken image"] += 1
                continue
            if self.image_hw is not None and not _same_frame(pixel_hw, tuple(self.image_hw[index])):
                self.skipped["image and annotation of different shape"] += 1
                continue
            kept.append(index)
        self._keep(kept)

    def _keep(self, indices: Sequence[int]) -> None:
        self.image_paths, self.labels = [self.image_paths[index] for index in indices], self.labels[indices]
        if self.num_objects is not None:
            self.boxes_xyxy, self.image_hw = self.boxes_xyxy[indices], self.image_hw[indices]
            self.num_objects = self.num_objects[indices]


def check_frame(path: str | Path, pixel_hw: tuple[int, int], xml_hw: tuple[int, int]) -> None:
    """Raise ValueError unless an annotation's (height, width) is its image's, or that of a scaled version of it."""
    if not _same_frame(pixel_hw, xml_hw):
        raise ValueError(
            f"image {path} is {pixel_hw[1]} x {pixel_hw[0]} (width x height), its annotation says "
            f"{xml_hw[1]} x {xml_hw[0]}: they do not belong together, or one was rotated. Restore the original "
            "file, or leave such images out where there is a skip_broken"
        )


def _same_frame(pixel_hw: tuple[int, int], xml_hw: tuple[int, int]) -> bool:
    ratio = (pixel_hw[0] * xml_hw[1]) / (pixel_hw[1] * xml_hw[0])
    return pixel_hw == xml_hw or abs(ratio - 1) <= _FRAME_TOLERANCE


def _read_annotation(path: Path, image_path: str) -> ImageAnnotation:
    try:
        return read_voc_xml(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no annotation {path} for image {image_path}; restore it, give its folder as annotation_root, or leave "
            "out images without boxes where there is a skip_broken (about 6 in 10 of the training set)"
        ) from error
