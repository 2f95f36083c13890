"""LaSt-ViT: one pooling module for every place that reads a ViT's global token. Needs torch alone to import.

The public names are imported when they are first used, so that a command line's --help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from last_vit.dense import DenseOutput, attach_last, attach_pool, dense_forward
    from last_vit.kernels.fused_pool import use_fused_pool
    from last_vit.patch_scores import patch_score
    from last_vit.pooling import LaStPool, last_pool, last_select, low_pass, stability, vote_count

_HOMES = {
    "DenseOutput": "dense",
    "attach_last": "dense",
    "attach_pool": "dense",
    "dense_forward": "dense",
    "LaStPool": "pooling",
    "last_pool": "pooling",
    "last_select": "pooling",
    "low_pass": "pooling",
    "stability": "pooling",
    "patch_score": "patch_scores",
    "vote_count": "pooling",
    "use_fused_pool": "kernels.fused_pool",
}

__all__ = [
    "DenseOutput",
    "LaStPool",
    "attach_last",
    "attach_pool",
    "dense_forward",
    "last_pool",
    "last_select",
    "low_pass",
    "patch_score",
    "stability",
    "use_fused_pool",
    "vote_count",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
