"""Parts that the checkpoint tests share: random models, wrappers and files."""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT


def randomised(model: nn.Module) -> nn.Module:
    """No two models alike and no tensor constant, so that a tensor left out or swapped is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


class Holder(nn.Module):
    """A model that carries a host as an attribute, as classification nets, DINO's wrapper and CLIP do."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def prefixed(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def torchvision_vit(num_classes: int = 5, hidden_dim: int = 16) -> TorchvisionViT:
    size = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    return randomised(TorchvisionViT(**size, hidden_dim=hidden_dim, num_classes=num_classes))


def timm_vit(num_classes: int = 0) -> TimmViT:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return randomised(TimmViT(**size, num_classes=num_classes))
