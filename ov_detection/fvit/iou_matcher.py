"""Assignment of boxes to objects by IoU as F-ViT (mmdet) does it: low-quality matches have a floor and move the match.

detectron2's `Matcher` with two differences, both in what happens with `allow_low_quality_matches`: an object's best
boxes become its own only from an IoU of `min_low_quality` on, and they are then matched to that object, also where they
overlap another one more.
"""

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


class IoUMatcher(Matcher):
    """Objects and boxes by overlap.

    Args:
        negative_below: IoU with the nearest object below which a box is background. F-ViT: 0.3 (anchors), 0.5 (RoIs).
        positive_from: IoU from which it is an object; what lies between is ignored. F-ViT: 0.7 (anchors), 0.5 (RoIs).
        low_quality: Whether the best boxes of an object are its own below `positive_from`. F-ViT: on for anchors, and
            for RoIs on LVIS; off for RoIs on COCO.
        min_low_quality: IoU that such a box needs. F-ViT: 0.3 (anchors), 0.5 (RoIs).
    """

    def __init__(self, negative_below: float, positive_from: float, low_quality: bool, min_low_quality: float) -> None:
        super().__init__([negative_below, positive_from], [0, -1, 1], allow_low_quality_matches=False)
        self.low_quality = low_quality
        self.min_low_quality = min_low_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """IoU [M objects, N boxes] -> long [N] index of the matched object, int8 [N] label: 1, 0, or -1 (ignored)."""
        matches, labels = super().__call__(match_quality_matrix)
        if self.low_quality and match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            is_best = (match_quality_matrix == best) & (best >= self.min_low_quality)
            number = torch.arange(1, len(is_best) + 1, dtype=torch.int32, device=is_best.device)
            owner = (is_best * number[:, None]).amax(dim=0)  # of several objects with the same best box, the last
            labels[owner > 0] = 1
            matches = torch.where(owner > 0, owner.long() - 1, matches)
        return matches, labels
