"""Names that users type, in one place: command lines offer them before torch is loaded."""

import difflib
from collections.abc import Iterable
from functools import lru_cache

POOLS = ("cls", "mean", "max", "attention", "last")
VARIANTS = ("release", "paper")
# The token that patches are compared with; "trained" is the one that the model is pooled with.
GLOBAL_TOKENS = ("trained", "cls", "last", "mean")
# How a CLIP tower's last block is read densely: see clip_dense.
LAST_BLOCKS = ("vanilla", "maskclip", "sclip", "clearclip", "naclip", "fvit")


@lru_cache(maxsize=1)
def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 class folders of ImageNet-1k, sorted, which is the order of its labels."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raise a ValueError with the closest known names for a name that is not known."""
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"close ones: {', '.join(close)}" if close else f"there are {len(known)}, for example {known[0]}"
        raise ValueError(f"unknown {kind} {name!r}; {hint}")
