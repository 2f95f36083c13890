"""Which batch norm a layer gets: synchronised on GPUs in several processes, plain otherwise, the same keys in both."""

import torch.distributed
from detectron2.utils import comm


def choose_norm(norm: str, may_be_empty: bool = False) -> str:
    """The name that detectron2's `get_norm` takes.

    F-ViT trains every norm as SyncBN. nn.SyncBatchNorm needs a GPU, and inside detectron2's layers it refuses an input
    without samples, which a process has in its mask head when none of its images shows an object; detectron2's own
    version, weighted by samples, takes it.

    Args:
        norm: "auto", or a name that is passed on: "BN", "SyncBN", "naiveSyncBN_N", "FrozenBN", "GN" or "" (none).
        may_be_empty: Whether the layer runs on regions, of which there may be none.

    Returns:
        For "auto": "BN" in one process or without GPUs, else "SyncBN", or "naiveSyncBN_N" where input may be empty.
    """
    if norm != "auto":
        return norm
    if comm.get_world_size() == 1 or torch.distributed.get_backend() != "nccl":
        return "BN"
    return "naiveSyncBN_N" if may_be_empty else "SyncBN"
