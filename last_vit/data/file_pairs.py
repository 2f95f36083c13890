"""Pairs images with their annotations by name, wherever the two lie in their folders."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

_RULE = "names must be unique, or the folders on both sides the same"


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Visible files below a folder, in depth and sorted; links are followed.

    Args:
        folder: Where to look.
        suffixes: Lower-case endings with their dots; the files' may be in any case.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
    return [Path(path) for path in sorted(found)]


def pair_by_name(images: Sequence[PurePath], annotations: Sequence[PurePath], with_ending: bool) -> list[int | None]:
    """Find each image's annotation: the one of the same last name.

    Where several share it, folders decide: one of the two paths must be the end of the other ("val2017/7.jpg" and
    "7.jpg", or equal paths in two trees).

    Args:
        images: Paths relative to the images' folder.
        annotations: Paths relative to theirs, or names that the annotations give for images.
        with_ending: Whether the names' endings are compared, too.

    Returns:
        Per image the index into `annotations`, or None.

    Raises:
        ValueError: An image that several annotations fit, or an annotation that fits several images.

    Example:
        >>> pair_by_name([PurePath("cat/1.jpg"), PurePath("dog/1.jpg")], [PurePath("dog/1.xml")], with_ending=False)
        [None, 0]
    """
    image_names, annotation_names = (
        list(paths) if with_ending else [path.with_suffix("") for path in paths] for paths in (images, annotations)
    )
    indices = defaultdict(list)
    for index, name in enumerate(annotation_names):
        indices[name.name].append(index)
    sharing = Counter(name.name for name in image_names)
    pairs: list[int | None] = []
    image_of: dict[int, PurePath] = {}
    for image, name in zip(images, image_names, strict=True):
        fitting = indices.get(name.name, [])
        if len(fitting) > 1 or sharing[name.name] > 1:
            fitting = [index for index in fitting if _is_end_of_other(name, annotation_names[index])]
        if len(fitting) > 1:
            raise ValueError(
                f"image {image} fits annotations {annotations[fitting[0]]} and {annotations[fitting[1]]}: {_RULE}"
            )
        pairs.append(fitting[0] if fitting else None)
        if fitting and image_of.setdefault(fitting[0], image) is not image:
            raise ValueError(
                f"annotation {annotations[fitting[0]]} fits images {image_of[fitting[0]]} and {image}: {_RULE}"
            )
    return pairs


def _is_end_of_other(path: PurePath, other: PurePath) -> bool:
    length = min(len(path.parts), len(other.parts))
    return path.parts[-length:] == other.parts[-length:]
