"""DINO's student and teacher: a backbone over crops of several sizes, and the projection head to the prototypes."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightNormedLinear(nn.Module):
    """Linear layer without bias whose rows are `weight_g * weight_v / |weight_v|`.

    The two parameters have the names of torch's old `weight_norm`, which DINO's checkpoints hold; torch's present
    parametrization names them otherwise. The rows' lengths `weight_g`, all 1 at first, are trained with `train_norm`.
    """

    def __init__(self, in_features: int, out_features: int, train_norm: bool) -> None:
        super().__init__()
        # the order of DINO's optimizer state
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_features] -> [B, out_features]."""
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DinoHead(nn.Module):
    """Three linear layers with GELU between them, L2 normalisation, `WeightNormedLinear` to `out_dim` prototypes.

    `use_bn` adds batch norm after the first two layers; `norm_last_layer` keeps the prototypes' lengths at 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in ((in_dim, hidden_dim), (hidden_dim, hidden_dim)):
            norm = [nn.BatchNorm1d(width_out)] if use_bn else []
            layers += [nn.Linear(width_in, width_out), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormedLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] tokens -> [B, out_dim] logits."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class MultiCrop(nn.Module):
    """Student or teacher: images [B, 3, H, W] -> tokens [B, D] -> logits [B, C], named as in DINO's checkpoints."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """Logits of all crops: [len(crops) * B, C], all images of the first crop, then of the second, ..."""
        return self.head(self.tokens(crops))

    def tokens(self, crops: Sequence[Tensor]) -> Tensor:
        """Global tokens [len(crops) * B, D], in the same order, with one backbone pass per size of neighbours."""
        groups = (torch.cat(list(same_size)) for _, same_size in groupby(crops, key=lambda crop: crop.shape[2:]))
        return torch.cat([self.backbone(group) for group in groups])
