"""One pass over a data set for Point-in-Box: forward, patch score, best patch, hit (paper Sec. 4.1).

Shared by visualization/evaluate_patch_hit.py, evaluation during training, and the bench. Chooses no images, computes
no percentages and writes nothing.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from last_vit.adapters import DenseOutput
from last_vit.dense import dense_batches, dense_forward
from last_vit.layer_tokens import layer_tokens
from last_vit.metrics import PointInBox, TopK
from last_vit.metrics.patch_norms import PatchNorms, token_norms
from last_vit.names import GLOBAL_TOKENS
from last_vit.patch_scores import patch_score
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


@torch.inference_mode()
def count_patch_hits(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    point_in_box: PointInBox,
    top_k: TopK | None = None,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
    patch_norms: PatchNorms | None = None,
) -> None:
    """Feed a model's best patches, and its logits and norms, to the metrics; each process over its share of the data.

    Model and batches are as in `dense_batches`; batches also have "box_xyxy" [B, 4] and "image_hw" [B, 2] (original
    pixels), and "label" [B] when there is a `top_k`. The crop and resize of `point_in_box` are the images'. `top_k`
    takes the logits, `patch_norms` the norms of the patch tokens before the final norm. `global_token` is one of
    `GLOBAL_TOKENS`, `last_pool` for "last", with K = 1 by default.
    """
    last_pool = last_pool or LaStPool(top_k=1)
    read = dense_forward if patch_norms is None else layer_tokens
    for found, batch in dense_batches(model, batches, device, read):
        output = found if patch_norms is None else found.output
        score = patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool))
        point_in_box.update(score, batch["box_xyxy"], batch["image_hw"], output.grid_hw)
        if top_k is not None:
            top_k.update(output.logits, batch["label"])
        if patch_norms is not None:
            patch_norms.update(token_norms(found.layers[-1]))
