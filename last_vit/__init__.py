"""LaSt-ViT: one pooling module for every place that reads a ViT's global token. Needs torch alone to import."""

from last_vit.dense import DenseOutput, attach_last, attach_pool, dense_forward
from last_vit.patch_score import patch_score
from last_vit.pooling import LaStPool, last_pool, last_select, low_pass, stability, vote_count

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
    "vote_count",
]
