"""Any folder of images with what is object on them, in pixels and in patches: what the diagnostics look at.

The annotation goes through exactly the image's geometry (shorter side resized, centre cropped), and comes out in the
crop's pixels. A resized mask takes the nearest pixel; a box covers the pixels whose centres it contains. Padding is
unknown, and so are crowd regions, except where an object lies on them.

Letters: B images, S the crop's side in pixels, N = h * w patches in row-major order.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreground_sources import BACKGROUND, OBJECT, UNKNOWN, ImageObjects, open_annotations
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from last_vit.boxes import is_small_box, resize_crop_box
from last_vit.data.image_files import IMAGE_SUFFIXES, list_files, load_rgb, pair_by_name, verify_image
from last_vit.data.imagenet import check_frame
from last_vit.data.transforms import EvalTransform
from last_vit.runtime import progress


class ForegroundImages(Dataset):
    """Images of a folder, in depth and sorted by path, with their foreground.

    A sample is a dict: `image` float32 [3, S, S]; `foreground` uint8 [S, S] in the crop's pixels (1 object, 0
    background, 255 unknown; all 255 without annotations); `index` (into this data set); `image_hw` int64 [2], the
    original (height, width); `box_xyxy` float32 [4] in original pixels, NaN unless exactly one object, and no crowd
    region, is annotated and the annotation tells objects apart (boxes, and COCO's masks).

    Files are read when a sample is asked for, so a broken one stops there, by name. `skipped` is what was left out,
    and `filtered` what `keep_single_objects` leaves out, reason -> count.

    `boxes` are COCO's instances_*.json, whose file names are found in depth below `images`; or a folder of XML files,
    one per image of the same name without ending. Corners in an `Annotations` folder beside `JPEGImages` are VOC's
    (counted from 1, inclusive), all others are taken as they stand (ImageNet's). `masks`, in their place, are COCO's
    instances_*.json, whose segmentations are drawn; or a folder with one mask per image of the same name: a one-channel
    PNG, or integers in an .npy (0 background, 255 unknown, anything else object), or booleans in an .npy. `skip_broken`
    reads everything once, now, and leaves out and counts what is unreadable or has no partner.

    FileNotFoundError for what is not there, and an image or annotation without partner; ValueError for names that fit
    several files, no image left, an unreadable file, and annotations of another shape than their image.
    """

    def __init__(
        self,
        images: str | Path,
        transform: EvalTransform,
        boxes: str | Path | None = None,
        masks: str | Path | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.folder = Path(images).expanduser()
        self.transform = transform
        self.skipped: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"image folder {self.folder} does not exist or is not a folder")
        self.image_paths = list_files(self.folder, IMAGE_SUFFIXES, self.skipped)
        if not self.image_paths:
            raise FileNotFoundError(f"no image in {self.folder}, searched in depth for {', '.join(IMAGE_SUFFIXES)}")
        self._annotations = boxes if masks is None else masks
        self.has_foreground = self._annotations is not None
        self._source = None
        self._pairs: list[int | None] = [None] * len(self.image_paths)
        if self.has_foreground:
            self._source = open_annotations(self._annotations, with_masks=masks is not None)
            self.skipped += self._source.skipped
            self._pair(skip_broken)
        if skip_broken:
            self._leave_out_broken()

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.image_paths[index]
        image = load_rgb(path)
        image_hw = (image.height, image.width)
        size, crop = self.transform.resize, self.transform.crop
        box = torch.full((4,), torch.nan)
        foreground = torch.full((crop, crop), UNKNOWN, dtype=torch.uint8)
        if self._source is not None:
            objects = self._source.read(self._pairs[index])
            _check_shape(path, image_hw, objects)
            # an annotation of a scaled image (ImageNet has such) is brought to the image's own pixels
            scale = torch.tensor(image_hw).flip(0).repeat(2) / torch.tensor(objects.image_hw).flip(0).repeat(2)
            boxes = None if objects.boxes_xyxy is None else objects.boxes_xyxy * scale
            if objects.mask is None:
                _draw_boxes(foreground, boxes, objects.is_crowd, image_hw, size)
            else:
                _draw_mask(foreground, objects.mask, image_hw, size)
            if boxes is not None and len(boxes) == 1 and not objects.is_crowd[0]:
                box = boxes[0]
        return {
            "image": self.transform(image),
            "foreground": foreground,
            "index": index,
            "image_hw": torch.tensor(image_hw, dtype=torch.int64),
            "box_xyxy": box,
        }

    def keep_single_objects(self, max_box_area: float | None = None) -> None:
        """Keep what Point-in-Box is defined on: exactly one object, with a box below this share of the image.

        The others are counted in `filtered`; a crowd region counts as several objects. ValueError where none is left,
        and for annotations that do not tell objects apart.
        """
        if self._source is None:
            raise ValueError(f"which images of {self.folder} show one object is not known: give their boxes")
        kept = []
        for path, pair in zip(self.image_paths, self._pairs, strict=True):
            objects = self._source.read(pair)
            boxes = objects.boxes_xyxy
            if boxes is None:
                raise ValueError(f"masks in {self._annotations} do not tell objects apart: give boxes, or COCO's masks")
            if len(boxes) != 1 or objects.is_crowd.any():
                self.filtered["several objects" if len(boxes) else "no object"] += 1
            elif max_box_area is not None and not is_small_box(boxes, torch.tensor([objects.image_hw]), max_box_area):
                self.filtered["large box"] += 1
            else:
                kept.append((path, pair))
        if not kept:
            raise ValueError(
                f"no image of {self.folder} has exactly one object, with a box below --max-box-area: "
                f"{dict(self.filtered)}"
            )
        self._keep(kept)

    def _pair(self, skip_broken: bool) -> None:
        """Give every image its annotation; what has no partner is an error, or left out."""
        names = [path.relative_to(self.folder) for path in self.image_paths]
        pairs = pair_by_name(names, self._source.names, with_ending=self._source.names_are_images)
        alone = [path for path, pair in zip(self.image_paths, pairs, strict=True) if pair is None]
        unused = [self._source.names[index] for index in sorted(set(range(len(self._source.names))) - set(pairs))]
        if len(alone) == len(pairs):
            raise FileNotFoundError(
                f"none of the {len(pairs)} images of {self.folder} (such as {names[0]}) is annotated in "
                f"{self._annotations} (such as {self._source.names[0]}): do they belong together?"
            )
        if not skip_broken and (alone or unused):
            faults = {
                f"{len(alone)} of {len(pairs)} images have no annotation": alone,
                f"{len(unused)} of {len(self._source.names)} annotations have no image": unused,
            }
            words = "; ".join(f"{fault} (such as {names[0]})" for fault, names in faults.items() if names)
            raise FileNotFoundError(
                f"images {self.folder} and annotations {self._annotations}: {words}. Complete them, or if one is meant "
                "to be a part of the other, leave out and count the rest with skip_broken"
            )
        self.skipped += Counter({"no annotation": len(alone), "annotation without image": len(unused)})
        self._keep([(path, pair) for path, pair in zip(self.image_paths, pairs, strict=True) if pair is not None])

    def _leave_out_broken(self) -> None:
        kept = []
        for path, pair in progress(list(zip(self.image_paths, self._pairs, strict=True)), "checking images", "file"):
            fault = "broken image"
            try:
                image_hw = verify_image(path)
                if self._source is not None:
                    fault = "broken annotation"
                    objects = self._source.read(pair)
                    fault = "image and annotation of different shape"
                    _check_shape(path, image_hw, objects)
                kept.append((path, pair))
            except ValueError:
                self.skipped[fault] += 1
        if not kept:
            raise ValueError(f"no image of {self.folder} is left: skipped {dict(self.skipped)}")
        self._keep(kept)

    def _keep(self, kept: list[tuple[Path, int | None]]) -> None:
        self.image_paths, self._pairs = map(list, zip(*kept, strict=True))


def patch_foreground(foreground: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The patches that show an object, and those of which enough is known to say so (paper Sec. 4, figure 2a).

    `foreground` is uint8 [B, S, S] in the crop's pixels (1 object, 255 unknown, anything else background); the grid
    (h, w) need not divide S. Every patch gets exactly its share of each pixel, counted in whole parts of a pixel.
    Both bool [B, N]: foreground, where more than half of the patch's known area is object, false where not known; and
    known, where at least half of its area is.

    Example:
        >>> left = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 255, 255], [0, 0, 255, 255]]], dtype=torch.uint8)
        >>> patch_foreground(left, (2, 2))
        (tensor([[ True, False, False, False]]), tensor([[ True,  True,  True, False]]))
    """
    object_area, known_area = patch_areas(foreground, grid_hw)
    is_known = 2 * known_area >= foreground.shape[-1] ** 2
    return (2 * object_area > known_area) & is_known, is_known


def patch_areas(foreground: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much of every patch is object, and how much is known, in parts 1 / N of a pixel: both float64 [B, N]."""
    side = foreground.shape[-1]
    rows, columns = (_overlaps(side, num_patches, foreground.device) for num_patches in grid_hw)
    # double: a CUDA product of whole numbers, exact below 2**53
    object_area, unknown_area = (
        (rows @ (foreground == value).double() @ columns.T).flatten(1) for value in (OBJECT, UNKNOWN)
    )
    return object_area, side * side - unknown_area


def to_pixels(patches: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Of every pixel, the patch that its centre lies in (the lower or right one on a border).

    [B, h, w, ...] -> [B, H, W, ...]; the grid is not finer than the H x W pixels, but need not divide them.
    """
    # along each axis the patch of every pixel's centre; whole numbers, so exact
    rows, columns = (
        (2 * torch.arange(num_pixels, device=patches.device) + 1) * cells // (2 * num_pixels)
        for num_pixels, cells in zip(size_hw, patches.shape[1:3], strict=True)
    )
    return patches[:, rows[:, None], columns]


def patch_groups(is_foreground: Tensor, is_known: Tensor) -> tuple[Tensor, Tensor]:
    """(background, object) of the known patches, bool [B, 2, N], and which images show both, bool [B]."""
    groups = torch.stack([is_known & ~is_foreground, is_known & is_foreground], dim=1)
    return groups, groups.any(dim=2).all(dim=1)


def _overlaps(side: int, num_patches: int, device: torch.device) -> Tensor:
    """Length that each pixel shares with each patch along one axis, in 1 / num_patches of a pixel: [N, side]."""
    pixel = torch.arange(side, device=device) * num_patches
    patch = torch.arange(num_patches, device=device)[:, None] * side
    stop = torch.minimum(pixel + num_patches, patch + side)
    return (stop - torch.maximum(pixel, patch)).clamp(min=0).double()


def _check_shape(path: Path, image_hw: tuple[int, int], objects: ImageObjects) -> None:
    if objects.mask is None:
        check_frame(path, image_hw, objects.image_hw)
    elif tuple(objects.mask.shape) != image_hw:
        raise ValueError(
            f"image {path} is {image_hw[1]} x {image_hw[0]} (width x height), its mask {objects.mask.shape[1]} x "
            f"{objects.mask.shape[0]}: masks must have their image's size. Give both at the same resolution, or leave "
            "out such images with skip_broken"
        )


def _draw_boxes(foreground: Tensor, boxes: Tensor, is_crowd: Tensor, image_hw: tuple[int, int], resized: int) -> None:
    """Fill uint8 [S, S], which is all unknown, with the image's frame, its crowd regions and its objects."""
    frame = torch.tensor([[0.0, 0.0, image_hw[1], image_hw[0]]])
    every = torch.cat([frame, boxes[is_crowd], boxes[~is_crowd]])
    values = [BACKGROUND] + [UNKNOWN] * int(is_crowd.sum()) + [OBJECT] * int((~is_crowd).sum())
    side = len(foreground)
    mapped = resize_crop_box(every, torch.tensor([image_hw]).expand(len(every), 2), resized, side)
    # pixel i, with its centre at i + 0.5, is covered by start <= i + 0.5 < stop
    corners = (mapped - 0.5).ceil().clamp(0, side).long().tolist()
    for value, (x1, y1, x2, y2) in zip(values, corners, strict=True):
        foreground[y1:y2, x1:x2] = value


def _draw_mask(foreground: Tensor, mask: Tensor, image_hw: tuple[int, int], resized: int) -> None:
    """Fill uint8 [S, S], which is all unknown, with a mask of the image's size."""
    _draw_boxes(foreground, torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool), image_hw, resized)
    picture = resize(Image.fromarray(mask.numpy()), resized, InterpolationMode.NEAREST)
    # the frame is 0 now and takes the mask's values; the padding is all ones and stays
    foreground |= torch.from_numpy(np.array(center_crop(picture, len(foreground))))
