"""Images to train on: ImageNet's folders, any folder of images, or drawn ones. Labels are not used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet_layout import find_split_folder, list_split
from last_vit.data.synthetic import SyntheticObjects

SYNTHETIC = "synthetic"
_NUM_SYNTHETIC = 1024


class ImageFolder(Dataset):
    """The images of a folder; a sample is {"image": transform(image)}.

    Args:
        folder: Class folders of images, or images.
        transform: Of a PIL RGB image.

    Raises:
        FileNotFoundError: No image there.
        ValueError: Images beside class folders. `__getitem__` raises it for an unreadable image.
    """

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Any]) -> None:
        self.image_paths = list_split(folder).image_paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.transform(load_rgb(self.image_paths[index]))}


def open_training_images(data_path: str, transform: Callable[[Image.Image], Any]) -> Dataset:
    """What --data_path names.

    Args:
        data_path: ImageNet's `train` folder or the folder above it, any other folder of images (in class folders or
            flat), or "synthetic": 1,024 images drawn by `last_vit.data.synthetic`.
        transform: Of a PIL RGB image.

    Returns:
        Data set whose samples are dicts with "image".

    Raises:
        FileNotFoundError: No such folder, or no image in it; the message says what was expected.
        ValueError: As `ImageFolder`.
    """
    if data_path == SYNTHETIC:
        return SyntheticObjects(_NUM_SYNTHETIC, "train", transform=transform)
    folder = Path(data_path).expanduser()
    has_split = any((folder / inner / "train").is_dir() for inner in (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"))
    if has_split or not folder.is_dir():
        folder = find_split_folder(folder, "train")
    return ImageFolder(folder, transform)
