"""Images to train on, and DINO's multi-crop views of them: two large and several small ones, each distorted anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.data.image_files import load_rgb, verify_image
from last_vit.data.imagenet_layout import find_split_folder, list_split
from last_vit.data.synthetic import SyntheticObjects
from last_vit.evaluation import progress
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from last_vit.runtime import get_logger

SYNTHETIC = "synthetic"
_NUM_SYNTHETIC = 1024


class MultiCropAugmentation:
    """PIL RGB image -> list of views, float32 [3, side, side], ImageNet-normalised, the two global ones first.

    Every view is a random resized crop (bicubic), flipped with probability 0.5, colour-jittered with 0.8 and turned
    grey with 0.2; then the first global view is blurred, the second with probability 0.1 (and solarised with 0.2), a
    local one with 0.5. All chance is drawn from torch's CPU generator. A scale is the smallest and largest share of the
    image's area that a crop takes, a size its side in pixels.
    """

    def __init__(
        self,
        global_crops_scale: Sequence[float],
        local_crops_scale: Sequence[float],
        local_crops_number: int,
        global_crop_size: int = 224,
        local_crop_size: int = 96,
    ) -> None:
        first = _view(global_crop_size, global_crops_scale, blur=1.0)
        second = _view(global_crop_size, global_crops_scale, blur=0.1, solarize=0.2)
        local = _view(local_crop_size, local_crops_scale, blur=0.5)
        self.views = (first, second, *[local] * local_crops_number)

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """The views of one image."""
        return [view(image) for view in self.views]


class RandomBlur:
    """Gaussian blur, with a probability in [0, 1] and a radius drawn from [0.1, 2] pixels."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        """A blurred copy, or the image itself."""
        if torch.rand(()).item() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(0.1 + (2.0 - 0.1) * torch.rand(()).item()))


def _view(side: int, scale: Sequence[float], blur: float, solarize: float = 0.0) -> Callable[[Image.Image], Tensor]:
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=tuple(scale), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            RandomBlur(blur),
            *([transforms.RandomSolarize(128, p=solarize)] if solarize else []),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class ImageFolder(Dataset):
    """The images of a folder, as {"image": transform(image)}; labels are not used.

    Raises:
        FileNotFoundError: No image there.
        ValueError: Images beside class folders. `__getitem__` raises it for an unreadable image, which `skip_broken`
            leaves out: then all are read once, now.
    """

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Any], skip_broken: bool = False) -> None:
        self.image_paths = list_split(folder).image_paths
        if skip_broken:
            found = self.image_paths
            self.image_paths = [path for path in progress(found, "checking images") if _is_sound(path)]
            get_logger("dino").info(f"Left out {len(found) - len(self.image_paths)} broken of {len(found)} images")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.transform(load_rgb(self.image_paths[index]))}


def _is_sound(path: str | Path) -> bool:
    try:
        verify_image(path)
    except ValueError:
        return False
    return True


def open_training_images(data_path: str, transform: Callable[[Image.Image], Any], skip_broken: bool = False) -> Dataset:
    """What --data_path names.

    Args:
        data_path: ImageNet's `train` folder or the folder above it, any other folder of images (in class folders or
            flat), or "synthetic": 1,024 drawn images.
        transform: Of a PIL RGB image.
        skip_broken: As `ImageFolder`.

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
    return ImageFolder(folder, transform, skip_broken)
