"""Which token patches are compared with."""

from torch import Tensor

from last_vit.adapters import DenseOutput
from last_vit.names import GLOBAL_TOKENS
from last_vit.pooling import LaStPool


def choose_global_token(output: DenseOutput, kind: str, last_pool: LaStPool) -> Tensor:
    """The token that patches are compared with, of a `dense_forward`.

    "trained" is what the model is pooled with, "cls" the class token, "last" `last_pool` of the patches, "mean" their
    mean. ValueError for another kind, and for "cls" where the model has no class token.
    """
    if kind not in GLOBAL_TOKENS:
        raise ValueError(f"global token must be one of {', '.join(GLOBAL_TOKENS)}, got {kind!r}")
    if kind == "trained":
        return output.global_token
    if kind == "last":
        return last_pool(output.patch_tokens)
    if kind == "mean":
        return output.patch_tokens.mean(dim=1)
    if output.cls_token is None:
        raise ValueError("this model has no class token to take as the global token; choose trained, last or mean")
    return output.cls_token
