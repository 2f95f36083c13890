"""mIoU of semantic segmentation over a whole data set, streaming and distributed.

Definition, that of mmsegmentation and so of all published numbers:

- Pixels whose ground truth is the ignored label count nowhere, whatever was predicted there.
- Intersections and unions of a class are summed over all pixels of all images; only then are they divided.
- mIoU is the mean of the IoU over the classes that occur: those with at least one counted pixel in the ground truth or
  in a prediction, of which one that is only predicted has IoU 0. A class that occurs in neither has no IoU (0/0) and is
  left out; `num_absent` says how many are, on the full data sets none.

Counting never waits for a GPU; a label that is no class therefore shows in `compute`.
"""

from typing import Any

import torch
from seg_id_tables import IGNORED
from torch import Tensor

from last_vit.metrics.summed_counters import SummedTensors


class MeanIoU:
    """Streaming mIoU of C classes, background included, summed over all processes in `compute`.

    Labels are 0 to C - 1, and 255 for pixels that do not count.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # truth x prediction row by row, then ignored pixels, labels and predictions that are no class
        self._counts = SummedTensors(pixels=(num_classes**2 + 3,))

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image: two integer tensors of one shape; the label may be the ignored one."""
        size, truth, guess = self.num_classes, label.flatten().long(), prediction.flatten().long()
        bins = truth * size + guess
        for place, wrong in (
            (2, (guess < 0) | (guess >= size)),
            (1, (truth < 0) | (truth >= size)),
            (0, truth == IGNORED),
        ):
            bins.masked_fill_(wrong, size * size + place)
        # not bincount, which asks a GPU for the largest value and waits for the answer
        counts = torch.zeros(size * size + 3, dtype=torch.int64, device=bins.device)
        counts.scatter_add_(0, bins, counts.new_ones(1).expand_as(bins))
        self._counts.add(pixels=counts)

    def compute(self) -> dict[str, Any]:
        """The result over everything counted by all processes; every process must call this together.

        "miou", "pixel_accuracy" and "mean_accuracy" (recall, over the classes of the ground truth) in percent,
        "num_absent" classes, and "iou": C values in percent, None for an absent class. ValueError if no pixel counted,
        or a label or a prediction was no class.
        """
        size = self.num_classes
        pairs, others = self._counts.totals()["pixels"].split([size * size, 3])
        for name, number in zip(("labels", "predictions"), others[1:].tolist(), strict=True):
            if number:
                raise ValueError(
                    f"{number:.0f} pixels have {name} that are no class: there are {size} (0 to {size - 1}) and "
                    f"{IGNORED}, ignored; check the label maps and the data set's name"
                )
        confusion = pairs.reshape(size, size)
        if not confusion.any():
            raise ValueError("mIoU of zero pixels is undefined: no image was counted, or every pixel is ignored")
        hits, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        iou, recall = hits / (labelled + predicted - hits), hits / labelled  # NaN is 0/0
        return {
            "miou": float(100 * iou.nanmean()),
            "pixel_accuracy": float(100 * confusion.trace() / confusion.sum()),
            "mean_accuracy": float(100 * recall.nanmean()),
            "num_absent": int(iou.isnan().sum()),
            "iou": [None if value != value else 100 * value for value in iou.tolist()],
        }
