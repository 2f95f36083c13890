"""Register tokens: extra learned tokens that take part in attention and are then dropped (Darcet et al., ICLR 2024).

The paper's tables 1 and 3 compare with them. Here for torchvision's VisionTransformer: two hooks around its blocks, so
that its own forward, every pool and every probe see the class token and the patches exactly as without registers.
"""

import torch
from torch import Tensor, nn

from last_vit.adapters.torchvision_vit import check_host


def add_register_tokens(model: nn.Module, num_registers: int = 4) -> nn.Module:
    """Give a ViT R learned tokens without position embedding, in the order [CLS, registers, patches].

    They enter behind the position embedding (and its dropout), pass all blocks, and are dropped before the final norm.
    The model gains one parameter, `register_tokens` [1, R, D], drawn from a normal distribution with std 1e-6. So
    weights with registers do not load into a model without them, nor the reverse. To be called before the optimizer,
    DDP and torch.compile take the model.

    Args:
        model: torchvision's VisionTransformer itself, changed in place.
        num_registers: R, at least 1; 4 in Darcet et al.

    Returns:
        `model` itself.

    Raises:
        ValueError: Another host, a model that has registers, or no positive number of them.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> vit = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        >>> vit = add_register_tokens(vit, 4)
        >>> vit.register_tokens.shape, vit(torch.rand(2, 3, 32, 32)).shape
        (torch.Size([1, 4, 16]), torch.Size([2, 5]))
    """
    check_host(model, "register tokens")
    if not isinstance(num_registers, int) or isinstance(num_registers, bool) or num_registers < 1:
        raise ValueError(f"num_registers must be an int of at least 1 (4 in Darcet et al.), got {num_registers!r}")
    if hasattr(model, "register_tokens"):
        raise ValueError(f"this model has {model.register_tokens.shape[1]} register tokens already")
    registers = model.class_token.new_empty(1, num_registers, model.hidden_dim).normal_(std=1e-6)
    model.register_parameter("register_tokens", nn.Parameter(registers))
    model.encoder.layers.register_forward_pre_hook(_Insert(model))
    model.encoder.layers.register_forward_hook(_Remove(num_registers))
    return model


class _Insert:
    """[B, 1 + N, D] -> [B, 1 + R + N, D]; looks the parameter up in its host, wherever that was moved or copied."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (tokens,) = args
        registers = self.host.register_tokens.expand(len(tokens), -1, -1)
        return (torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1),)


class _Remove:
    """[B, 1 + R + N, D] -> [B, 1 + N, D]."""

    def __init__(self, num_registers: int) -> None:
        self.num_registers = num_registers

    def __call__(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], output[:, 1 + self.num_registers :]], dim=1)
