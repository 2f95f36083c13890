"""Images at their own resolution with all their objects: normalised, then padded to whole patches, as LOST does.

No image is resized or cropped. Zeros (the mean colour, for they come after normalisation) are added at the right and at
the bottom, so pixels keep their coordinates. A batch holds images of one padded size only.

Letters: M objects of one image.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from object_lists import ImageObjects, ObjectList
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.functional import normalize, to_tensor
from tqdm import tqdm

from last_vit.data.image_files import load_rgb, verify_image
from last_vit.data.imagenet import check_frame
from last_vit.runtime import rank, world_size


class DiscoveryImages(Dataset):
    """The images of an `ObjectList`.

    A sample is a dict: `image` float32 [3, H, W], normalised, at native resolution; `image_hw` (H, W); `objects_xyxy`
    float32 [M, 4] in the image's pixels; `labels` int64 [M]; `index` (into this data set); `name`, the image's path
    below the folder that holds all of them.

    Args:
        objects: What to show.
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].

    Raises:
        OSError, ValueError: In `__getitem__`, for an image that is unreadable, or whose annotation is of another shape.
    """

    def __init__(self, objects: ObjectList, mean: Sequence[float], std: Sequence[float]) -> None:
        self.objects = objects
        self.mean, self.std = tuple(mean), tuple(std)
        self.names = image_names(objects)

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


def leave_out_broken(objects: ObjectList) -> ObjectList:
    """The images that can be read and have their annotation's shape; the others counted in `skipped`.

    Reads every file once.

    Raises:
        ValueError: No image is left.
    """
    kept, skipped = [], Counter(objects.skipped)
    for image in tqdm(objects.images, desc="checking images", unit=" files", disable=None, leave=False):
        fault = _fault(image)
        if fault is None:
            kept.append(image)
        else:
            skipped[fault] += 1
    if not kept:
        raise ValueError(f"no image is left: skipped {dict(skipped)}")
    return objects._replace(images=kept, skipped=skipped)


def _fault(image: ImageObjects) -> str | None:
    try:
        image_hw = verify_image(image.path)
    except ValueError:
        return "broken image"
    try:
        check_frame(image.path, image_hw, image.frame_hw)
    except ValueError:
        return "image and annotation of different shape"
    return None


def image_names(objects: ObjectList) -> list[str]:
    """One name per image, unique: its path below the deepest folder that holds all of them."""
    paths = [image.path for image in objects.images]
    depth = min(len(path.parts) for path in paths) - 1
    common = 0
    while common < depth and len({path.parts[common] for path in paths}) == 1:
        common += 1
    return ["/".join(path.parts[common:]) for path in paths]


def pad_to_patch(image: Tensor, patch_size: int) -> Tensor:
    """Add zeros at the right and at the bottom, up to whole patches.

    Args:
        image: [..., H, W].
        patch_size: Side of a patch in pixels.

    Returns:
        [..., H', W'], the next multiples of `patch_size`; `image` itself where it has whole patches.

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

    Args:
        images: The same in every process.
        patch_size: Of the model, in pixels.
        batch_size: At most so many images of one padded size per batch.
        num_workers: Loading processes.

    Raises:
        ValueError: In a batch: an image smaller than a patch; the message names it.
    """
    share = range(*(len(images) * part // world_size() for part in (rank(), rank() + 1)))
    return DataLoader(
        images,
        batch_sampler=_EqualSizes(images, share, patch_size, batch_size),
        collate_fn=partial(_collate, patch_size=patch_size),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


class _EqualSizes(Sampler[list[int]]):
    """Batches of images of one padded size, each given out as soon as it is full, the rest at the end."""

    def __init__(self, images: DiscoveryImages, share: range, patch_size: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self._share = share
        self._sizes = [()] * len(share)
        if batch_size > 1:
            self._sizes = [tuple(-(-side // patch_size) for side in images.image_hw(index)) for index in share]

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, size in zip(self._share, self._sizes, strict=True):
            waiting[size].append(index)
            if len(waiting[size]) == self.batch_size:
                yield waiting.pop(size)
        yield from waiting.values()


def _collate(samples: list[dict[str, Any]], patch_size: int) -> dict[str, Any]:
    others = {key: [sample[key] for sample in samples] for key in samples[0] if key != "image"}
    return {"image": torch.stack([_padded(sample, patch_size) for sample in samples])} | others


def _padded(sample: dict[str, Any], patch_size: int) -> Tensor:
    try:
        return pad_to_patch(sample["image"], patch_size)
    except ValueError as error:
        raise ValueError(f"{sample['name']}: {error}") from error
