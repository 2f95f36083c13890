"""Lists of images with all their annotated objects, from VOC, COCO and ImageNet layouts: what object discovery runs on.

Everything that is annotated is read when a list is opened, so a missing or broken annotation stops before any model
runs. No image is opened.

Which objects count is the protocol of LOST, which the field's CorLoc numbers share: VOC's difficult and truncated ones
do, COCO's crowd regions do not, and COCO's boxes are rounded to whole pixels.

Letters: M objects of one image.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from last_vit.data.coco import CocoInstances
from last_vit.data.image_files import IMAGE_SUFFIXES, list_files, pair_by_name
from last_vit.data.imagenet_layout import annotation_finder, find_annotation_folder, find_split_folder, list_split
from last_vit.data.voc import ImageAnnotation, VocSplit, read_voc_xml


class ImageObjects(NamedTuple):
    """One image and its objects."""

    path: Path
    frame_hw: tuple[int, int]  # (height, width) in pixels that the annotation gives
    boxes_xyxy: Tensor  # float32 [M, 4], pixels of the frame, x2 and y2 exclusive; M may be 0
    labels: Tensor  # int64 [M], indices into `ObjectList.classes`


class ObjectList(NamedTuple):
    """Images with their objects.

    Attributes:
        images: In the order of the list they come from.
        classes: Names of the classes.
        skipped: What was left out, reason -> count.
    """

    images: list[ImageObjects]
    classes: tuple[str, ...]
    skipped: Counter[str]


def list_voc_objects(root: str | Path, split: str, skip_broken: bool = False) -> ObjectList:
    """The images of a VOC split's Main list; difficult and truncated objects included.

    Args:
        root: As in `VocSplit`.
        split: As in `VocSplit`, "trainval" for CorLoc.
        skip_broken: Leave out and count images without annotation.

    Raises:
        FileNotFoundError: As `VocSplit`, or annotations that are missing; the message counts them.
        ValueError: As `VocSplit` and `read_voc_xml`.
    """
    voc = VocSplit(root, split)
    folder = voc.folder / "Annotations"
    kept = [index for index, stem in enumerate(voc.stems) if (folder / f"{stem}.xml").is_file()]
    missing = [voc.stems[index] for index in sorted(set(range(len(voc))) - set(kept))]
    if missing and (not kept or not skip_broken):
        raise FileNotFoundError(
            f"{len(missing)} of the {len(voc)} images of split {split!r} have no annotation, such as "
            f"{folder / missing[0]}.xml; are the annotations those of another split or year? Leave out and count such "
            "images with --skip-broken"
        )
    found = [voc.objects(index) for index in _progress(kept)]
    classes = tuple(sorted({name for each in found for name in each.names}))
    images = [
        ImageObjects(voc.image_path(index), each.image_hw, each.boxes_xyxy, _labels(each.names, classes))
        for index, each in zip(kept, found, strict=True)
    ]
    return ObjectList(images, classes, +Counter({"no annotation": len(missing)}))


def list_coco_objects(
    images: str | Path, annotations: str | Path, listing: str | Path | None = None, skip_broken: bool = False
) -> ObjectList:
    """The images of a COCO instances file, or those of them that a list names; crowd regions left out.

    Args:
        images: Folder in which the files lie, in depth.
        annotations: COCO's instances_*.json.
        listing: Text file with one file name per line, with or without folders, such as coco_20k_filenames.txt; None
            takes every image of the JSON.
        skip_broken: Leave out and count images without file, and names that the JSON does not know.

    Raises:
        FileNotFoundError: No such folder or file, or images that are missing; the message counts them.
        ValueError: As `CocoInstances`; a list that is empty, names an image twice, or names one that the JSON lacks.
    """
    folder, coco = Path(images).expanduser(), CocoInstances(Path(annotations).expanduser())
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist or is not a folder")
    names = [PurePath(name) for name in coco.file_names]
    wanted, unknown = range(len(coco)), 0
    if listing is not None:
        wanted, unknown = _find_listed(Path(listing).expanduser(), names, coco.path, skip_broken)
    paths = list_files(folder, IMAGE_SUFFIXES)
    pairs = pair_by_name([path.relative_to(folder) for path in paths], names, with_ending=True)
    path_of = {index: path for path, index in zip(paths, pairs, strict=True) if index is not None}
    missing = [index for index in wanted if index not in path_of]
    if missing and (len(missing) == len(wanted) or not skip_broken):
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} images are not in {folder}, such as {names[missing[0]]}; complete the "
            "folder, or leave out and count what is missing with --skip-broken"
        )
    label_of = {category: label for label, category in enumerate(coco.categories)}
    found = []
    for index in wanted:
        if index in path_of:
            objects = coco.objects(index)
            single = ~objects.is_crowd
            labels = torch.tensor([label_of[each] for each in objects.category_ids[single].tolist()], dtype=torch.int64)
            frame_hw = tuple(coco.image_hw[index].tolist())
            found.append(ImageObjects(path_of[index], frame_hw, objects.boxes_xyxy[single].round(), labels))
    skipped = +(coco.skipped + Counter({"not in the annotations": unknown, "no image file": len(missing)}))
    return ObjectList(found, tuple(coco.categories.values()), skipped)


def list_imagenet_objects(
    root: str | Path, annotation_root: str | Path | None = None, skip_broken: bool = False
) -> ObjectList:
    """The images of ImageNet's val split, or of another set in that layout; corners as they stand in the XML files.

    Args:
        root: As in `find_split_folder`.
        annotation_root: As in `find_annotation_folder`.
        skip_broken: Leave out and count images without annotation.

    Raises:
        FileNotFoundError: As those two, or an annotation that is missing.
        ValueError: As `read_voc_xml` and `list_split`.
    """
    folder = find_split_folder(root, "val")
    paths = [Path(path) for path in list_split(folder).image_paths]
    find = annotation_finder(find_annotation_folder(folder, "val", annotation_root))
    xml_of = {path: find(str(path)) for path in paths}
    missing = [path for path in paths if not xml_of[path].is_file()]
    if missing and (len(missing) == len(paths) or not skip_broken):
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} images of {folder} have no annotation, such as {xml_of[missing[0]]}; "
            "complete them, or leave out and count such images with --skip-broken"
        )
    kept = [path for path in paths if xml_of[path].is_file()]
    found = [read_voc_xml(xml_of[path]) for path in _progress(kept)]
    classes = tuple(sorted({each.name for annotation in found for each in annotation.objects}))
    images = [_as_they_stand(path, annotation, classes) for path, annotation in zip(kept, found, strict=True)]
    return ObjectList(images, classes, +Counter({"no annotation": len(missing)}))


def _as_they_stand(path: Path, annotation: ImageAnnotation, classes: tuple[str, ...]) -> ImageObjects:
    boxes = torch.tensor([each[1:] for each in annotation.objects], dtype=torch.float32).reshape(-1, 4)
    names = [each.name for each in annotation.objects]
    return ImageObjects(path, (annotation.height, annotation.width), boxes, _labels(names, classes))


def _labels(names: Iterable[str], classes: tuple[str, ...]) -> Tensor:
    return torch.tensor([classes.index(name) for name in names], dtype=torch.int64)


def _find_listed(listing: Path, known: list[PurePath], annotations: Path, skip_broken: bool) -> tuple[list[int], int]:
    """Indices into `known` of the file names that a text file lists, and how many of its names are not there."""
    names = [PurePath(line.strip()) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"image list {listing} is empty; expected one file name per line")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"image list {listing} names {name} {count} times")
    found = pair_by_name(names, known, with_ending=True)
    unknown = [name for name, index in zip(names, found, strict=True) if index is None]
    if unknown and (len(unknown) == len(names) or not skip_broken):
        raise ValueError(
            f"{len(unknown)} of the {len(names)} images in {listing} are not in {annotations}, such as {unknown[0]} "
            f"(which lists {len(known)} images such as {known[0]}): are the annotations those of another split? "
            "Leave such images out and count them with --skip-broken"
        )
    return [index for index in found if index is not None], len(unknown)


def _progress(items: Sequence) -> tqdm:
    return tqdm(items, desc="reading objects", unit=" images", disable=None, leave=False)
