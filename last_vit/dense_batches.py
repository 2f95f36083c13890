"""One pass of a model over a data set, batch by batch: the loop that every diagnostic shares.

Keeps nothing between batches, so memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from last_vit.dense import dense_forward

Output = TypeVar("Output")


def dense_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    read: Callable[[nn.Module, Tensor], Output] = dense_forward,
) -> Iterator[tuple[Output, dict[str, Any]]]:
    """Read a model densely on every batch, without gradients.

    Args:
        model: On `device`, in eval mode, of a host that has an adapter.
        batches: Mappings with "image", float [B, 3, H, W], and whatever else.
        device: Where to compute.
        read: What one pass of the model over [B, 3, H, W] images is read with; by default its `DenseOutput`.

    Yields:
        What `read` returned and the batch, both with their tensors on `device`.
    """
    for batch in batches:
        moved = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with torch.inference_mode():
            output = read(model, moved["image"])
        yield output, moved
