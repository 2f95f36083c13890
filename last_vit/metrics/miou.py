"""mIoU of semantic segmentation over a whole data set, streaming and distributed.

Definition, that of mmsegmentation and so of all published numbers:

- Pixels whose ground truth is the ignored label count nowhere, whatever was predicted there.
- Intersections and unions of a class are summed over all pixels of all images; only then are they divided. An image's
  own IoU plays no part.
- mIoU is the mean of the IoU over the classes that occur: those with at least one counted pixel in the ground truth or
  in a prediction. A class that occurs in neither has no IoU (0/0) and is left out of the mean; a class that is only
  predicted has IoU 0 and counts. On the full data sets every class occurs in the ground truth, so the mean is over all
  of them; on a few images it is not, and `num_absent` says of how many classes that is true.

Counts are int64, so the result does not depend on how the data set is split.
"""

from typing import Any

import torch
from torch import Tensor

from last_vit.runtime import all_reduce_sum

IGNORED = 255


class MeanIoU:
    """Streaming mIoU, summed over all processes in `compute`.

    Args:
        num_classes: C, background included where the data set has one; labels are 0 to C - 1.
        ignored: The label of pixels that do not count.

    Raises:
        ValueError: No classes, or an ignored label that is a class.

    Example:
        >>> metric = MeanIoU(3)
        >>> metric.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]))
        50.0
        >>> metric.compute()["miou"], metric.compute()["num_absent"]
        (50.0, 1)
    """

    def __init__(self, num_classes: int, ignored: int = IGNORED) -> None:
        if num_classes < 1 or 0 <= ignored < num_classes:
            raise ValueError(f"need at least one class and an ignored label outside them, got {num_classes}, {ignored}")
        self.num_classes = num_classes
        self.ignored = ignored
        self._confusion: Tensor | None = None  # [C, C], truth x prediction

    def update(self, prediction: Tensor, label: Tensor) -> float:
        """Count one image.

        Args:
            prediction: Integer [...], 0 to C - 1 wherever the label is not ignored.
            label: Integer of the same shape, 0 to C - 1 or the ignored label.

        Returns:
            The image's own mIoU in percent, over the classes that occur in it; NaN where every pixel is ignored.

        Raises:
            ValueError: Shapes that differ, or a value that is no class; the message names it.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} must be of one size: predictions "
                f"are brought to the annotation's size, never the annotation to theirs"
            )
        is_known = label != self.ignored
        truth, guess = label[is_known].long(), prediction[is_known].long()
        for name, values in (("label", truth), ("prediction", guess)):
            if values.numel():
                low, high = (int(end) for end in values.aminmax())
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"a {name} of {low if low < 0 else high} is no class: there are {self.num_classes} "
                        f"(0 to {self.num_classes - 1}) and {self.ignored}, ignored; check the label maps and the data "
                        f"set's name"
                    )
        size = self.num_classes
        counts = torch.bincount(truth * size + guess, minlength=size * size).reshape(size, size)
        self._confusion = counts if self._confusion is None else self._confusion + counts
        return float(100 * _iou(counts)[0].nanmean())

    def compute(self) -> dict[str, Any]:
        """The result over everything counted by all processes; every process must call this together.

        Returns:
            "miou", "pixel_accuracy" and "mean_accuracy" (recall, over the classes of the ground truth) in percent,
            "num_absent" classes, and "iou": C values in percent, None for an absent class.

        Raises:
            ValueError: If no pixel counted.
        """
        size = self.num_classes
        local = torch.zeros(size, size, dtype=torch.int64) if self._confusion is None else self._confusion
        confusion = all_reduce_sum(local).cpu()
        if not confusion.any():
            raise ValueError("mIoU of zero pixels is undefined: no image was counted, or every pixel is ignored")
        iou, recall = _iou(confusion)
        return {
            "miou": float(100 * iou.nanmean()),
            "pixel_accuracy": float(100 * confusion.trace() / confusion.sum()),
            "mean_accuracy": float(100 * recall.nanmean()),
            "num_absent": int(iou.isnan().sum()),
            "iou": [None if value != value else 100 * value for value in iou.tolist()],
        }


def _iou(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and recall per class, float64 [C]; NaN is 0/0."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return hits / (labelled + predicted - confusion.diagonal()), hits / labelled
