"""One pass over a data set for each probe of the paper's figure 2: which patches score high, and which are needed.

Shared by the command lines in visualization/ and by the bench. Chooses no images and writes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from masking import ORDERS, choose_patches, mask_patches, random_scores
from patch_foreground import patch_foreground
from score_distribution import ScoreDistribution
from torch import Tensor, nn

from last_vit.dense import dense_batches, dense_forward
from last_vit.metrics.top_k import TopK
from last_vit.patch_hit import choose_global_token
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool

MASKED_PERCENTS = tuple(range(10, 100, 10))
CURVES = (*ORDERS, "random")


@torch.inference_mode()
def count_patch_scores(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    distribution: ScoreDistribution,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
) -> None:
    """Feed a model's patch scores to the metric (figure 2a); each process over its share of the data.

    Args:
        model: On `device`, in eval mode, of a host that has an adapter.
        batches: Mappings with "image" [B, 3, S, S] and "foreground" uint8 [B, S, S], as `ForegroundImages` gives them.
        device: Where to compute.
        distribution: Updated.
        global_token: One of `last_vit.patch_hit.GLOBAL_TOKENS`.
        last_pool: For the token "last"; K = 1 by default.

    Raises:
        ValueError: As `choose_global_token`.
    """
    last_pool = last_pool or LaStPool(top_k=1)
    for output, batch in dense_batches(model, batches, device):
        score = patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool))
        distribution.update(score, *patch_foreground(batch["foreground"], output.grid_hw))


class MaskedAccuracy:
    """Top-1 accuracy by what is masked: nothing, or the top, the bottom or a random p percent of the patches.

    Args:
        percents: The values of p, in (0, 100).

    Raises:
        ValueError: No value, one outside the range, or one twice.
    """

    def __init__(self, percents: Sequence[int] = MASKED_PERCENTS) -> None:
        if not percents or len(set(percents)) < len(percents) or not all(0 < percent < 100 for percent in percents):
            raise ValueError(f"masked percents must be different numbers in [1, 99], got {list(percents)}")
        self.percents = tuple(percents)
        self.unmasked = TopK((1,))
        self.masked = {(curve, percent): TopK((1,)) for curve in CURVES for percent in self.percents}

    def compute(self) -> dict[str, float]:
        """Accuracies over everything counted by all processes, in percent.

        Returns:
            "top1", of the whole images; "top1_<curve>_<p>" for every p and for "top", "bottom" and "random";
            "num_images".

        Raises:
            ValueError: As `TopK.compute`.
        """
        whole = self.unmasked.compute()
        found = {f"top1_{curve}_{percent}": top_k.compute()["acc1"] for (curve, percent), top_k in self.masked.items()}
        return {"top1": whole["acc1"], **found, "num_images": whole["num_images"]}


@torch.inference_mode()
def count_masked(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    accuracy: MaskedAccuracy,
    num_classes: int,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
    seed: int = 0,
) -> None:
    """Mask each image by the model's own patch scores of the whole image and classify it again (figure 2b).

    One forward pass for the scores and one per curve and percentage. Labels are only compared with the answers.

    Args:
        model: On `device`, in eval mode, of a host that has an adapter.
        batches: Mappings with "image" [B, 3, H, W], normalised, "label" and "index" [B], as `ImageNetDataset`'s.
        device: Where to compute.
        accuracy: Updated; says which percentages.
        num_classes: Classes of the labels, which must be the model's.
        global_token: As in `count_patch_scores`; what the scores compare with.
        last_pool: As in `count_patch_scores`.
        seed: Of the random curve, whose masks belong to "index" and not to the batch.

    Raises:
        ValueError: As `choose_global_token`, or a model of another number of classes.
    """
    last_pool = last_pool or LaStPool(top_k=1)
    for output, batch in dense_batches(model, batches, device):
        images, labels, grid_hw = batch["image"], batch["label"], output.grid_hw
        if output.logits.shape[1] != num_classes:
            raise ValueError(
                f"the model answers with {output.logits.shape[1]} numbers, the images have {num_classes} classes: "
                "masking needs a classifier of these classes"
            )
        score = patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool))
        noise = random_scores(batch["index"].tolist(), score.shape[1], seed).to(device)
        accuracy.unmasked.update(output.logits, labels)
        for (curve, percent), top_k in accuracy.masked.items():
            ranked, order = (noise, "top") if curve == "random" else (score, curve)
            masked = mask_patches(images, choose_patches(ranked, percent / 100, order), grid_hw)
            top_k.update(dense_forward(model, masked).logits, labels)
