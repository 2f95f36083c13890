"""How images become a model's input: the numbers that travel with weights, model specs and results."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize`, centre crop to `crop`, then normalised; the default is ImageNet's 256 / 224.

    Attributes:
        mean: Per RGB channel, of values in [0, 1].
        std: Per RGB channel, of values in [0, 1].
        resize: Shorter side before the crop, in pixels.
        crop: Side of the centre crop, in pixels.
        interpolation: "bilinear" or "bicubic".
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
