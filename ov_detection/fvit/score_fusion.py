"""The two scores of a region, detector's and vision-language model's, as one: geometric means with their own weights.

    base classes, background:  p_det^(1 - alpha) * p_vlm^alpha
    novel classes:             p_det^(1 - beta)  * p_vlm^beta

"f-vit" leaves it there, so a row does not sum to 1. "f-vlm" takes the background from the detector alone and divides
each row by its sum (F-VLM, arXiv:2209.15639).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FUSIONS = ("f-vit", "f-vlm")


def fuse_scores(
    det_logits: Tensor, vlm_logits: Tensor, is_base: Tensor, alpha: float, beta: float, fusion: str = "f-vit"
) -> Tensor:
    """Class scores of regions; both softmaxes run over all classes and the background.

    Args:
        det_logits: [R, C + 1] float32, background last: cosine times temperature.
        vlm_logits: [R, C + 1] float32: the same of the vision-language features.
        is_base: bool [C], classes that the detector was trained with.
        alpha: Weight of the vision-language score for base classes, in [0, 1].
        beta: The same for all other classes.
        fusion: One of FUSIONS.

    Returns:
        [R, C + 1] in [0, 1].

    Raises:
        ValueError: Unknown fusion, or a weight outside [0, 1].
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    weight = torch.where(F.pad(is_base, (0, 1), value=True), alpha, beta).to(det_logits)
    log_det = det_logits.log_softmax(dim=-1)
    log_fused = torch.lerp(log_det, vlm_logits.log_softmax(dim=-1), weight)
    if fusion == "f-vit":
        return log_fused.exp()
    return torch.cat([log_fused[:, :-1], log_det[:, -1:]], dim=1).softmax(dim=-1)
