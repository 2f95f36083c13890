"""Names that users type, in one place: command lines offer them before torch is loaded."""

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
