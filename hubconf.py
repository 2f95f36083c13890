"""Entries for torch.hub, with the arguments of `last_vit.load`.

model, transform = torch.hub.load("path/to/this/repository", "vitb16_in1k_last", source="local")
"""

from typing import Any

from last_vit import load as _load

dependencies = ["torch", "torchvision", "timm", "safetensors", "tqdm", "PIL"]


def vitb16_in1k_last(**arguments: Any) -> tuple:
    """ViT-B/16 trained on ImageNet-1k's labels with LaSt, K = 1: 67.4 % top-1."""
    return _load("vitb16_in1k_last", **arguments)


def vit_dino_last(**arguments: Any) -> tuple:
    """A ViT trained by DINO with LaSt; the file tells S from B."""
    return _load("vit_dino_last", **arguments)


def vitb16_clip_last(**arguments: Any) -> tuple:
    """OpenAI's CLIP B/16 fine-tuned with LaSt; needs open_clip."""
    return _load("vitb16_clip_last", **arguments)
