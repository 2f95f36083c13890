"""Reader of COCO's `captions_*.json`: the images that have captions, and their captions.

Takes COCO's folder (`annotations/captions_train2017.json` and `train2017/`), a folder that holds one `captions_*.json`
beside its images, or the JSON file itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from last_vit.data.image_files import load_rgb

_EXPECTED = "expected COCO's captions_*.json: an object with the lists images and annotations"


class CocoCaptions:
    """The captioned images of one `captions_*.json`.

    Attributes:
        path: The file.
        image_paths: One per image with a caption, in the file's order.
        captions: Per image, its captions, none blank.
        skipped: Images of the file without a caption.

    Args:
        root: See the module.
        split: "train" or "val", which of COCO's two to take; without meaning for a file or a folder with one.

    Raises:
        FileNotFoundError: No such file or folder, or no image where they are looked for.
        ValueError: No captions, several files to choose from, or not COCO captions; the message names file and entry.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.path = _find_file(Path(root), split)
        names, captions = _read(self.path)
        kept = [(name, captions[image_id]) for image_id, name in names.items() if captions[image_id]]
        if not kept:
            raise ValueError(f"{self.path} has {len(names)} images, and not one of them has a caption")
        self.skipped = len(names) - len(kept)
        folder = _find_images(self.path, kept[0][0])
        self.image_paths = [folder / name for name, _ in kept]
        self.captions = [tuple(texts) for _, texts in kept]

    def __len__(self) -> int:
        return len(self.image_paths)

    def sample(self, index: int) -> tuple[Image.Image, Sequence[str]]:
        """Image `index` in RGB, and its captions.

        Raises:
            ValueError, OSError: The image cannot be read.
        """
        return load_rgb(self.image_paths[index]), self.captions[index]


def _find_file(root: Path, split: str) -> Path:
    if root.is_file():
        return root
    found = sorted([*root.glob("captions_*.json"), *root.glob("annotations/captions_*.json")])
    if not found:
        raise FileNotFoundError(
            f"no captions_*.json in {str(root)!r} or in its folder annotations/; COCO's come from "
            f"https://cocodataset.org (annotations_trainval2017.zip)"
        )
    of_split = [path for path in found if split in path.stem] if len(found) > 1 else found
    if len(of_split) != 1:
        raise ValueError(
            f"{str(root)!r} holds {', '.join(path.name for path in found)}, and which of them is for {split!r} is not "
            f"clear; give the file itself"
        )
    return of_split[0]


def _find_images(path: Path, name: str) -> Path:
    """The folder of the images: COCO's, named as the end of the file's name, or one at hand."""
    split = path.stem.removeprefix("captions_")
    folders = [base / inner for base in (path.parent, path.parent.parent) for inner in (split, "images", ".")]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise FileNotFoundError(
        f"the first image of {path}, {name}, is in none of {', '.join(dict.fromkeys(map(str, folders)))}"
    )


def _read(path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Image id -> file name, and image id -> captions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); {_EXPECTED}") from error
    for section in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise ValueError(f"{path} has no list {section}; {_EXPECTED}")
    names: dict[int, str] = {}
    for place, entry in enumerate(content["images"]):
        image_id, name = (_get(path, "images", place, entry, key) for key in ("id", "file_name"))
        if image_id in names:
            raise ValueError(f"{path}: images[{place}]: another image has the id {image_id}")
        names[image_id] = name
    captions: dict[int, list[str]] = {image_id: [] for image_id in names}
    for place, entry in enumerate(content["annotations"]):
        image_id, caption = (_get(path, "annotations", place, entry, key) for key in ("image_id", "caption"))
        if image_id not in names:
            raise ValueError(f"{path}: annotations[{place}] is of image {image_id}, which the file does not list")
        if str(caption).strip():
            captions[image_id].append(str(caption).strip())
    return names, captions


def _get(path: Path, section: str, place: int, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{path}: {section}[{place}] has no {key}; {_EXPECTED}")
    return entry[key]
