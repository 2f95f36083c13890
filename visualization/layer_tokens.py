"""Patch tokens after every block of a host, beside its dense output: what norms are measured on (paper figures 6, 8).

Read with forward hooks during one ordinary pass of the host; nothing of its forward is repeated here, and the hooks are
gone when the call ends, however it ends. A block's output is [B, prefix + N, D] with the prefix first, whatever the
prefix (class token, registers), so its patches are its last N tokens.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from torch import Tensor, nn

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.adapters.base import first_output
from last_vit.dense import dense_forward


class LayerTokens(NamedTuple):
    """One forward pass, read after every block, first block first.

    A ConvNet has one entry, its last feature map. `has_final_norm` is False for it and for ViTs built without final
    norm: there "before" and "after" the norm are the same.
    """

    output: DenseOutput  # its patch tokens are after the final norm
    all_tokens: tuple[Tensor, ...]  # one [B, P + N, D] per block, prefix first; the last is the un-normalised output
    has_final_norm: bool  # the host norms the last entry into `output.patch_tokens`

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """The patch tokens alone, one [B, N, D] per block."""
        return tuple(tokens[:, -self.output.patch_tokens.shape[1] :] for tokens in self.all_tokens)


def layer_tokens(model: nn.Module, images: Tensor) -> LayerTokens:
    """One forward pass of any host that `dense_forward` takes, with the patch tokens after every block.

    ValueError as `dense_forward`, and for a block whose output holds fewer tokens than the grid has patches.
    """
    blocks = find_adapter(model).blocks(unwrap_host(model))
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for module in blocks.modules:
            hooks.enter_context(module.register_forward_hook(_recorder(seen, blocks.batch_first)))
        output = dense_forward(model, images)
    if not blocks.modules:
        return LayerTokens(output, (output.patch_tokens,), False)
    num_patches = output.patch_tokens.shape[1]
    for index, tokens in enumerate(seen):
        if tokens.ndim != 3 or tokens.shape[1] < num_patches:
            raise ValueError(
                f"block {index} of this {type(unwrap_host(model)).__name__} returns {tuple(tokens.shape)}, which does "
                f"not hold the {num_patches} patch tokens of its {output.grid_hw} grid"
            )
    return LayerTokens(output, tuple(seen), blocks.has_final_norm)


def count_layers(model: nn.Module) -> tuple[int, bool]:
    """How many `LayerTokens.layers` a host gives, and its `has_final_norm`, without running it."""
    blocks = find_adapter(model).blocks(unwrap_host(model))
    return max(1, len(blocks.modules)), blocks.has_final_norm


def _recorder(seen: list[Tensor], batch_first: bool) -> Callable[[nn.Module, tuple, Tensor | tuple], None]:
    """A forward hook that appends a block's output, as [B, P + N, D]."""

    def record(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        tokens = first_output(output)
        seen.append(tokens if batch_first else tokens.transpose(0, 1))

    return record
