"""Which batch norm a layer gets: synchronised on GPUs in several processes, plain otherwise, the same keys in both."""

from collections.abc import Callable

import torch.distributed
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn


class RegionSyncBatchNorm(NaiveSyncBatchNorm):
    """detectron2's synchronised norm, weighted by samples, in float32.

    It takes the variance as a difference of two means; in bfloat16, which the convolution before it hands over under
    autocast, little or less than nothing would be left of it.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, stats_mode="N")

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, h, w] -> the same shape and type."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


def choose_norm(norm: str, may_be_empty: bool = False) -> str | Callable[[int], nn.Module]:
    """What detectron2's `get_norm` takes: a name, or what makes a norm for a number of channels.

    F-ViT trains every norm as SyncBN. nn.SyncBatchNorm needs a GPU, and inside detectron2's layers it refuses an input
    without samples, which a process has in its mask head when none of its images shows an object; detectron2's own
    version, weighted by samples, takes it.

    Args:
        norm: "auto", or a name that is passed on: "BN", "SyncBN", "naiveSyncBN_N", "FrozenBN", "GN" or "" (none).
        may_be_empty: Whether the layer runs on regions, of which there may be none.

    Returns:
        For "auto": "BN" in one process or without GPUs, else "SyncBN", or `RegionSyncBatchNorm` where input may be
        empty.
    """
    if norm != "auto":
        return norm
    if comm.get_world_size() == 1 or torch.distributed.get_backend() != "nccl":
        return "BN"
    return RegionSyncBatchNorm if may_be_empty else "SyncBN"
