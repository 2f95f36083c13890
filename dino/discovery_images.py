"""Images at their own resolution with all their annotated objects: what object discovery runs on.

Lists come from VOC, COCO and ImageNet layouts; every annotation is read when one is opened, so a missing or broken one
stops before any model runs. Which objects count is the protocol of LOST, which the field's CorLoc numbers share: VOC's
difficult and truncated ones do, COCO's crowd regions do not, and COCO's boxes are rounded to whole pixels.

No image is cropped, nor resized unless asked for. Zeros (the mean colour) are added at the right and at the bottom up
to whole patches, as LOST does. A batch holds images of one padded size.

Letters: M objects of one image.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional
from torchvision.transforms.functional import normalize, to_tensor

from last_vit.data.coco import CocoInstances
from last_vit.data.image_files import IMAGE_SUFFIXES, list_files, load_rgb, pair_by_name, verify_image
from last_vit.data.imagenet import check_frame
from last_vit.data.imagenet_layout import annotation_finder, find_annotation_folder, find_split_folder, list_split
from last_vit.data.loaders import process_share
from last_vit.data.voc import ImageAnnotation, VocSplit, read_voc_xml, stored_boxes, voc_boxes
from last_vit.evaluation import progress
from last_vit.runtime import rank


class ImageObjects(NamedTuple):
    """One image and its objects."""

    path: Path
    frame_hw: tuple[int, int]  # (height, width) in pixels that the annotation gives
    boxes_xyxy: Tensor  # float32 [M, 4], pixels of the frame, x2 and y2 exclusive; M may be 0
    labels: Tensor  # int64 [M], indices into `ObjectList.classes`


class ObjectList(NamedTuple):
    """Images with their objects, in the order of the list they come from."""

    images: list[ImageObjects]
    classes: tuple[str, ...]
    skipped: Counter[str]  # what was left out, reason -> count


def list_voc_objects(root: str | Path, split: str, skip_broken: bool = False) -> ObjectList:
    """The images of a VOC split's Main list ("trainval" for CorLoc), as `VocSplit` finds them.

    Missing annotations are counted in a FileNotFoundError; with `skip_broken`, here and below, such images are left out
    and counted.
    """
    voc = VocSplit(root, split)
    paths = {voc.image_path(index): voc.folder / "Annotations" / f"{stem}.xml" for index, stem in enumerate(voc.stems)}
    what = f"images of split {split!r} have no annotation"
    return _read_xml(paths, voc_boxes, what, "are the annotations those of another split or year?", skip_broken)


def list_imagenet_objects(root: str | Path, skip_broken: bool = False) -> ObjectList:
    """The images of ImageNet's val split, or of another set in that layout; corners as they stand in the XML files."""
    folder = find_split_folder(root, "val")
    find = annotation_finder(find_annotation_folder(folder, "val", None))
    paths = {Path(path): find(path) for path in list_split(folder).image_paths}
    what = f"images of {folder} have no annotation"
    return _read_xml(paths, stored_boxes, what, "are they complete?", skip_broken)


def list_coco_objects(
    images: str | Path, annotations: str | Path, listing: str | Path | None = None, skip_broken: bool = False
) -> ObjectList:
    """The images of a COCO instances file, their files anywhere below a folder; crowd regions left out.

    A `listing`, such as coco_20k_filenames.txt, chooses: one file name per line, with or without folders.
    """
    folder, coco = Path(images).expanduser(), CocoInstances(Path(annotations).expanduser())
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist or is not a folder")
    names = [PurePath(name) for name in coco.file_names]
    wanted, num_unknown = range(len(coco)), 0
    if listing is not None:
        wanted, num_unknown = _find_listed(Path(listing).expanduser(), names, coco.path, skip_broken)
    paths = list_files(folder, IMAGE_SUFFIXES)
    pairs = pair_by_name([path.relative_to(folder) for path in paths], names, with_ending=True)
    path_of = {index: path for path, index in zip(paths, pairs, strict=True) if index is not None}
    missing = [names[index] for index in wanted if index not in path_of]
    _check_missing(missing, len(wanted), f"images are not in {folder}", "is the folder complete?", skip_broken)
    label_of = {category: label for label, category in enumerate(coco.categories)}
    found = []
    for index in wanted:
        if index in path_of:
            objects = coco.objects(index)
            single = ~objects.is_crowd
            labels = torch.tensor([label_of[each] for each in objects.category_ids[single].tolist()], dtype=torch.int64)
            frame_hw = tuple(coco.image_hw[index].tolist())
            found.append(ImageObjects(path_of[index], frame_hw, objects.boxes_xyxy[single].round(), labels))
    skipped = +(coco.skipped + Counter({"not in the annotations": num_unknown, "no image file": len(missing)}))
    return ObjectList(found, tuple(coco.categories.values()), skipped)


def leave_out_broken(objects: ObjectList) -> ObjectList:
    """The images that can be read and have their annotation's shape; the others counted. Reads every file once."""
    kept, skipped = [], Counter(objects.skipped)
    for image in progress(objects.images, "checking images", " images"):
        fault = "broken image"
        try:
            image_hw = verify_image(image.path)
            fault = "image and annotation of different shape"
            check_frame(image.path, image_hw, image.frame_hw)
            kept.append(image)
        except ValueError:
            skipped[fault] += 1
    if not kept:
        raise ValueError(f"no image is left: skipped {dict(skipped)}")
    return objects._replace(images=kept, skipped=skipped)


class DiscoveryImages(Dataset):
    """The images of an `ObjectList`, normalised with `mean` and `std` per RGB channel of values in [0, 1].

    A sample is a dict: `image` float32 [3, H, W], normalised, at the size of `resized_hw`; `image_hw` (H, W);
    `objects_xyxy` float32 [M, 4] in its pixels; `labels` int64 [M]; `index` (into this data set); `name`, the image's
    path below the deepest folder that holds all of them.
    """

    def __init__(
        self, objects: ObjectList, mean: Sequence[float], std: Sequence[float], resize: Sequence[int] = ()
    ) -> None:
        self.objects, self.resize = objects, list(resize)
        self.mean, self.std = tuple(mean), tuple(std)
        folder = os.path.commonpath([image.path.parent for image in objects.images])
        self.names = [image.path.relative_to(folder).as_posix() for image in objects.images]

    def __len__(self) -> int:
        return len(self.objects.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        known, picture = self.objects.images[index], self.picture(index)
        image_hw = (picture.height, picture.width)
        # an annotation of a scaled image (ImageNet has such) is brought to the pixels that the model sees
        scale = torch.tensor([image_hw[1] / known.frame_hw[1], image_hw[0] / known.frame_hw[0]]).repeat(2)
        return {
            "image": normalize(to_tensor(picture), self.mean, self.std),
            "image_hw": image_hw,
            "objects_xyxy": known.boxes_xyxy * scale,
            "labels": known.labels,
            "index": index,
            "name": self.names[index],
        }

    def picture(self, index: int) -> Image.Image:
        """An image as it is read, at its size for the model."""
        known = self.objects.images[index]
        picture = load_rgb(known.path)
        check_frame(known.path, (picture.height, picture.width), known.frame_hw)
        return functional.resize(picture, self.resize) if self.resize else picture

    def file_hw(self, index: int) -> tuple[int, int]:
        """(height, width) of an image file, from its header."""
        with Image.open(self.objects.images[index].path) as picture:
            return picture.height, picture.width

    def image_hw(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as the model sees it."""
        return resized_hw(self.file_hw(index), self.resize)


def resized_hw(image_hw: tuple[int, int], resize: Sequence[int]) -> tuple[int, int]:
    """(height, width) that torchvision's `resize` makes of an image: of none, one or two numbers, as it is for none.

    Example:
        >>> resized_hw((300, 400), []), resized_hw((300, 400), [480]), resized_hw((300, 400), [224, 224])
        ((300, 400), (480, 640), (224, 224))
    """
    if len(resize) > 2:
        raise ValueError(f"--resize is the shorter side, or height and width, got {len(resize)} numbers")
    if len(resize) == 1:
        shorter = min(image_hw)
        resize = [resize[0] if side == shorter else int(resize[0] * side / shorter) for side in image_hw]
    return tuple(resize) or tuple(image_hw)


def pad_to_patch(image: Tensor, patch_size: int, name: str = "the image") -> Tensor:
    """[..., H, W] with zeros at the right and at the bottom, up to whole patches of `patch_size` pixels."""
    height, width = image.shape[-2:]
    if min(height, width) < patch_size:
        raise ValueError(
            f"{name} is {width} x {height} pixels (width x height), less than a patch of {patch_size}: leave it out"
        )
    return F.pad(image, (0, -width % patch_size, 0, -height % patch_size))


def build_native_loader(images: DiscoveryImages, patch_size: int, batch_size: int, num_workers: int) -> DataLoader:
    """Loader over this process's share of the images: each in exactly one process, none repeated.

    A batch is a dict: `image` float32 [B, 3, H', W'], padded; every other entry of a sample as a list of length B. An
    image smaller than a patch is named in a ValueError.
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
    padded = [pad_to_patch(sample["image"], patch_size, sample["name"]) for sample in samples]
    return batch | {"image": torch.stack(padded)}


def _read_xml(
    xml_of: dict[Path, Path], boxes_of: Callable[[ImageAnnotation], Tensor], what: str, advice: str, skip_broken: bool
) -> ObjectList:
    """The objects of images with one XML file each; `what` and `advice` are for those whose file is missing."""
    missing = [xml for xml in xml_of.values() if not xml.is_file()]
    _check_missing(missing, len(xml_of), what, advice, skip_broken)
    kept = [path for path, xml in xml_of.items() if xml.is_file()]
    found = [read_voc_xml(xml_of[path]) for path in progress(kept, "reading objects", " images")]
    classes = tuple(sorted({each.name for annotation in found for each in annotation.objects}))
    images = []
    for path, annotation in zip(kept, found, strict=True):
        labels = torch.tensor([classes.index(each.name) for each in annotation.objects], dtype=torch.int64)
        images.append(ImageObjects(path, (annotation.height, annotation.width), boxes_of(annotation), labels))
    return ObjectList(images, classes, +Counter({"no annotation": len(missing)}))


def _check_missing(
    missing: Sequence[PurePath],
    total: int,
    what: str,
    advice: str,
    skip_broken: bool,
    error: type[Exception] = FileNotFoundError,
) -> None:
    """Refuse what is missing, unless it is to be left out and is not everything."""
    if missing and (len(missing) == total or not skip_broken):
        raise error(
            f"{len(missing)} of the {total} {what}, such as {missing[0]}; {advice} Leave such images out and count "
            "them with --skip-broken"
        )


def _find_listed(listing: Path, known: list[PurePath], annotations: Path, skip_broken: bool) -> tuple[list[int], int]:
    """Indices into `known` of the file names that a text file lists, and how many of its names are not there."""
    names = [PurePath(line.strip()) for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"image list {listing} is empty; expected one file name per line")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"image list {listing} names {name} {count} times")
    found = pair_by_name(names, known, with_ending=True)
    unknown = [name for name, index in zip(names, found, strict=True) if index is None]
    advice = f"it lists images such as {known[0]}: are the annotations those of another split?"
    what = f"images in {listing} are not in {annotations}"
    _check_missing(unknown, len(names), what, advice, skip_broken, ValueError)
    return [index for index in found if index is not None], len(unknown)
