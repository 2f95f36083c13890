"""Images with captions: COCO, class folders with templates, CSV, drawn images.

A source has a length and `sample(index)`: an RGB image and its captions; ValueError or OSError for a faulty sample.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas
from class_names import find_class_names
from clip_train_options import CLASSES, COCO, DEFAULT_TEMPLATE
from PIL import Image

from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet_layout import find_folder, find_split_folder, has_split, list_split
from last_vit.data.synthetic import SyntheticObjects

NUM_DRAWN_VAL = 1000
_EXPECTED = "expected COCO's captions_*.json: an object with the lists images and annotations"


class NoCaptionError(ValueError):
    """A sample without a caption."""


class CaptionedFiles:
    """Image files and the captions of each; without any a sample is faulty."""

    def __init__(self, image_paths: Sequence[Path | str], captions: Sequence[tuple[str, ...]]) -> None:
        self.image_paths, self.captions = image_paths, captions

    def __len__(self) -> int:
        return len(self.image_paths)

    def sample(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """RGB image and its captions, at least one."""
        if not self.captions[index]:
            raise NoCaptionError(str(self.image_paths[index]))
        return load_rgb(self.image_paths[index]), self.captions[index]


class DrawnImages:
    """`SyntheticObjects` of `image_size` pixels a side with its captions."""

    def __init__(self, num_images: int, split: str, image_size: int) -> None:
        self.objects = SyntheticObjects(num_images, split, image_size=image_size)

    def __len__(self) -> int:
        return len(self.objects)

    def sample(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """RGB image and its one caption."""
        drawn = self.objects.render(index)
        return drawn.image, (drawn.caption,)


CaptionSource = CaptionedFiles | DrawnImages


def open_source(args: argparse.Namespace, is_train: bool, image_size: int) -> CaptionSource:
    """The data of one of our types that --train-data or --val-data names; `image_size` is that of drawn images."""
    path, split = (args.train_data, "train") if is_train else (args.val_data, "val")
    if args.dataset_type == COCO:
        return coco_captions(Path(path), split)
    if args.dataset_type == CLASSES:
        return class_folder(Path(path), split, args.class_names, args.caption_template or [DEFAULT_TEMPLATE])
    num_images = args.train_num_samples if is_train else args.val_num_samples or NUM_DRAWN_VAL
    return DrawnImages(num_images, split, image_size)


def class_folder(root: Path, split: str, class_names: str | None, templates: Sequence[str]) -> CaptionedFiles:
    """Class folders of images, captioned with templates that have {} for the class; see `find_class_names`.

    `root` holds class folders, or `train` and `val` with them, as ImageNet has.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"--caption-template must hold {{}} once, for the class, got {template!r}")
    listing = list_split(find_split_folder(root, split) if has_split(root, split) else find_folder(root))
    if not listing.classes:
        raise ValueError(f"{root} holds images without class folders, so what is on them is unknown")
    names = find_class_names(class_names, listing.classes)
    captions = [tuple(template.replace("{}", name) for template in templates for name in own) for own in names]
    return CaptionedFiles(listing.image_paths, [captions[label] for label in listing.labels])


def csv_captions(path: str, image_key: str, caption_key: str, separator: str) -> CaptionedFiles:
    """The rows of a table; an empty field is no caption, and a column that is not there an error."""
    table = pandas.read_csv(path, sep=separator)
    for flag, key in (("--csv-img-key", image_key), ("--csv-caption-key", caption_key)):
        if key not in table.columns:
            raise ValueError(f"{path} has no column {key!r} ({flag}) but {table.columns.tolist()} at {separator!r}")
    captions = [(str(text),) if text == text and str(text).strip() else () for text in table[caption_key]]  # NaN != NaN
    return CaptionedFiles(table[image_key].astype(str).tolist(), captions)


def coco_captions(root: Path, split: str) -> CaptionedFiles:
    """The images of a `captions_*.json` that have captions; errors name file and entry.

    `root` is COCO's folder (`annotations/captions_train2017.json`, `train2017/`), of which `split` takes one, a folder
    that holds one `captions_*.json` beside its images, or the JSON file itself.
    """
    path = root if root.is_file() else _find_captions(root, split)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images, annotations = content["images"], content["annotations"]
        captions: dict[int, list[str]] = {image["id"]: [] for image in images}
        if len(captions) < len(images):
            raise ValueError("two images have one id")
        for place, entry in enumerate(annotations):
            if entry["image_id"] not in captions:
                raise ValueError(f"annotations[{place}] is of image {entry['image_id']}, which it does not list")
            captions[entry["image_id"]] += filter(None, [str(entry["caption"]).strip()])
        kept = [(image["file_name"], tuple(captions[image["id"]])) for image in images if captions[image["id"]]]
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing; {_EXPECTED}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; {_EXPECTED}") from error
    if not kept:
        raise ValueError(f"{path} has {len(captions)} images, and not one of them has a caption")
    places = [base / inner for base in path.parents[:2] for inner in (path.stem[len("captions_") :], "images", ".")]
    folder = next((place for place in places if (place / kept[0][0]).is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"the first image of {path}, {kept[0][0]}, is in none of {', '.join(map(str, places))}")
    return CaptionedFiles([folder / name for name, _ in kept], [own for _, own in kept])


def _find_captions(root: Path, split: str) -> Path:
    found = sorted([*root.glob("captions_*.json"), *root.glob("annotations/captions_*.json")])
    if not found:
        raise FileNotFoundError(
            f"no captions_*.json in {str(root)!r} or its annotations/; COCO's come from https://cocodataset.org"
        )
    of_split = [path for path in found if split in path.stem] if len(found) > 1 else found
    if len(of_split) != 1:
        raise ValueError(
            f"which of {', '.join(path.name for path in found)} in {root} is for {split!r}? Give the file itself"
        )
    return of_split[0]
