"""Parts that the checkpoint tests share: random models, wrappers and files."""

from pathlib import Path

import torch
from torch import nn


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
