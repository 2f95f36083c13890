"""Names that users type, in one place: command lines offer them before torch is loaded."""

POOLS = ("cls", "mean", "max", "attention", "last")
VARIANTS = ("release", "paper")
# The token that patches are compared with; "trained" is the one that the model is pooled with.
GLOBAL_TOKENS = ("trained", "cls", "last", "mean")
# How a CLIP tower's last block is read densely: see clip_dense.
LAST_BLOCKS = ("vanilla", "maskclip", "sclip", "clearclip", "naclip", "fvit")
