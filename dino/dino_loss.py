"""DINO's loss: cross-entropy between the teacher's centred, sharpened view and every other view of the student.

The cross-entropy of q (the teacher's distribution) and softmax(s) is `logsumexp(s) - <q, s>`, for q sums to 1: one
batched product for all pairs of views, in place of a pass over [B, C] for each.

Letters: B images, V views, C prototypes (out_dim).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from last_vit.runtime import all_reduce_sum, world_size

NUM_TEACHER_VIEWS = 2


class LossTerms(NamedTuple):
    """The loss and, for the log, its mean over pairs with a global and with a local student view (detached).

    The entropy is the mean of the teacher's distributions, in nats: ln C when they are uniform, 0 when they are sure.
    """

    loss: Tensor
    global_pairs: Tensor
    local_pairs: Tensor | None
    teacher_entropy: Tensor


class DinoLoss(nn.Module):
    """Mean over the pairs (teacher view i, student view v != i) of the batch-mean cross-entropy.

    `out_dim` is C, `num_views` is V, at least 2, the two global views first.
    """

    def __init__(self, out_dim: int, num_views: int, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.num_views, self.student_temp, self.center_momentum = num_views, student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        # [2, V]: which pairs count; a view is not compared with itself
        self.register_buffer("_pairs", 1 - torch.eye(NUM_TEACHER_VIEWS, num_views), persistent=False)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, teacher_temp: float) -> LossTerms:
        """The loss of one batch, in float32 whatever the logits' dtype; the centre stays as it is.

        The student's are [V * B, C], all images of view 0, then of view 1, ...; the teacher's [2 * B, C], of the global
        views, which `teacher_temp` divides when centred.
        """
        with torch.autocast(student_logits.device.type, enabled=False):
            student = student_logits.float().unflatten(0, (self.num_views, -1)) / self.student_temp
            with torch.no_grad():
                sharp = (teacher_logits.float() - self.center) / teacher_temp
                target = sharp.softmax(dim=-1)
                entropy = (sharp.logsumexp(dim=-1) - torch.linalg.vecdot(target, sharp)).mean()
                target = target.unflatten(0, (NUM_TEACHER_VIEWS, -1))
            # [B, 2, C] x [B, C, V] -> [B, 2, V]
            agreement = torch.bmm(target.transpose(0, 1), student.permute(1, 2, 0))
            cross_entropy = (student.logsumexp(dim=-1) - agreement.permute(1, 2, 0)).mean(dim=-1)  # [2, V]
        pairs = cross_entropy * self._pairs
        num_global = NUM_TEACHER_VIEWS * (NUM_TEACHER_VIEWS - 1)
        num_local = NUM_TEACHER_VIEWS * (self.num_views - NUM_TEACHER_VIEWS)
        detached = pairs.detach()
        return LossTerms(
            pairs.sum() / (num_global + num_local),
            detached[:, :NUM_TEACHER_VIEWS].sum() / num_global,
            detached[:, NUM_TEACHER_VIEWS:].sum() / num_local if num_local else None,
            entropy,
        )

    @torch.no_grad()
    def update_center(self, teacher_sum: Tensor, num_logits: int) -> None:
        """Move the centre towards the mean of the teacher's raw logits over all processes; call once per step.

        `teacher_sum` is float32 [1, C], of this process, both views; `num_logits` rows were summed in every process.
        """
        mean = all_reduce_sum(teacher_sum) / (num_logits * world_size())
        self.center.mul_(self.center_momentum).add_(mean, alpha=1 - self.center_momentum)
