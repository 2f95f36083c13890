"""LaSt-ViT: one pooling module for every place that reads a ViT's global token. Needs torch alone to import.

The public names are imported when they are first used, so that a command line's --help does not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DenseOutput": "dense",
    "attach_last": "dense",
    "attach_pool": "dense",
    "dense_forward": "dense",
    "load": "evaluation",
    "LaStPool": "pooling",
    "last_pool": "pooling",
    "last_select": "pooling",
    "low_pass": "pooling",
    "stability": "pooling",
    "vote_count": "pooling",
    "patch_score": "patch_scores",
    "use_fused_pool": "kernels.fused_pool",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
