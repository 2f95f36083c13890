"""Images at their own resolution with all their objects: normalised, then padded to whole patches, as LOST does.

No image is resized or cropped. Zeros (the mean colour, for they come after normalisation) are added at the right and at
the bottom, so pixels keep their coordinates. A batch holds images of one padded size only.

Letters: M objects of one image.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from object_lists import ObjectList
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize, to_tensor

from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet import check_frame
from last_vit.data.loaders import process_share
from last_vit.runtime import rank


class DiscoveryImages(Dataset):
    """The images of an `ObjectList`, normalised with `mean` and `std` per RGB channel of values in [0, 1].

    A sample is a dict: `image` float32 [3, H, W], normalised, at native resolution; `image_hw` (H, W); `objects_xyxy`
    float32 [M, 4] in the image's pixels; `labels` int64 [M]; `index` (into this data set); `name`, the image's path
    below the deepest folder that holds all of them.

    Raises:
        OSError, ValueError: In `__getitem__`, for an image that is unreadable, or whose annotation is of another shape.
    """

    def __init__(self, objects: ObjectList, mean: Sequence[float], std: Sequence[float]) -> None:
        self.objects = objects
        self.mean, self.std = tuple(mean), tuple(std)
        folder = os.path.commonpath([image.path.parent for image in objects.images])
        self.names = [image.path.relative_to(folder).as_posix() for image in objects.images]

    def __len__(self) -> int:
        return len(self.objects.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        known = self.objects.images[index]
        picture = load_rgb(known.path)
        image_hw = (picture.height, picture.width)
        check_frame(known.path, image_hw, known.frame_hw)
        # an annotation of a scaled image (ImageNet has such) is brought to the image's own pixels
        scale = torch.tensor([image_hw[1] / known.frame_hw[1], image_hw[0] / known.frame_hw[0]]).repeat(2)
        return {
            "image": normalize(to_tensor(picture), self.mean, self.std),
            "image_hw": image_hw,
            "objects_xyxy": known.boxes_xyxy * scale,
            "labels": known.labels,
            "index": index,
            "name": self.names[index],
        }

    def image_hw(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, from its file's header."""
        with Image.open(self.objects.images[index].path) as picture:
            return picture.height, picture.width


def pad_to_patch(image: Tensor, patch_size: int) -> Tensor:
    """[..., H, W] with zeros at the right and at the bottom, up to whole patches of `patch_size` pixels.

    Raises:
        ValueError: An image that is smaller than a patch.

    Example:
        >>> pad_to_patch(torch.ones(3, 17, 32), 16).shape
        torch.Size([3, 32, 32])
    """
    height, width = image.shape[-2:]
    if min(height, width) < patch_size:
        raise ValueError(
            f"the image is {width} x {height} pixels (width x height), less than a patch of {patch_size} x "
            f"{patch_size}: nothing can be found on it; leave it out of the list or the annotations"
        )
    return F.pad(image, (0, -width % patch_size, 0, -height % patch_size))


def build_native_loader(images: DiscoveryImages, patch_size: int, batch_size: int, num_workers: int) -> DataLoader:
    """Loader over this process's share of the images: each in exactly one process, none repeated.

    A batch is a dict: `image` float32 [B, 3, H', W'], padded; every other entry of a sample as a list of length B.

    Raises:
        ValueError: In a batch: an image smaller than a patch; the message names it.
    """
    return DataLoader(
        images,
        batch_sampler=_batches_of_one_size(images, patch_size, batch_size),
        collate_fn=partial(_collate, patch_size=patch_size),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


def _batches_of_one_size(images: DiscoveryImages, patch_size: int, batch_size: int) -> list[list[int]]:
    """Indices of this process's share: full batches in the order in which they fill up, the rest at the end."""
    batches: list[list[int]] = []
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index in process_share(len(images), rank()):
        image_hw = images.image_hw(index) if batch_size > 1 else ()
        grid_hw = tuple(-(-side // patch_size) for side in image_hw)
        waiting[grid_hw].append(index)
        if len(waiting[grid_hw]) == batch_size:
            batches.append(waiting.pop(grid_hw))
    return [*batches, *waiting.values()]


def _collate(samples: list[dict[str, Any]], patch_size: int) -> dict[str, Any]:
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return batch | {"image": torch.stack([_padded(sample, patch_size) for sample in samples])}


def _padded(sample: dict[str, Any], patch_size: int) -> Tensor:
    try:
        return pad_to_patch(sample["image"], patch_size)
    except ValueError as error:
        raise ValueError(f"{sample['name']}: {error}") from error
