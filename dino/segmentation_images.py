"""VOC's segmentation images, squeezed to a model's square input, with their masks at the annotation's own size.

Aspect is ignored so that the whole image is seen, which a centre crop would not; the masks are never resized.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from last_vit.data.image_files import load_rgb
from last_vit.data.voc import VocSplit


class SegmentationImages(Dataset):
    """A sample is a dict: `image` float32 [3, S, S], normalised, and `index`.

    Args:
        split: From listing "Segmentation".
        size: S, in pixels.
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].
        interpolation: "bilinear" or "bicubic".
    """

    def __init__(
        self, split: VocSplit, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bilinear"
    ) -> None:
        self.split = split
        self._transform = transforms.Compose(
            [
                transforms.Resize((size, size), InterpolationMode(interpolation)),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._transform(load_rgb(self.split.image_path(index))), "index": index}

    def masks(self, index: int) -> tuple[Tensor, Tensor]:
        """SegmentationClass and SegmentationObject, uint8 [H, W] each: 0 background, 255 void.

        Raises:
            FileNotFoundError, ValueError: As `VocSplit`.
        """
        return self.split.class_mask(index), self.split.object_mask(index)
