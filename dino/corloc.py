"""CorLoc: share of images whose one predicted box overlaps any annotated object by half (IoU >= 0.5).

The measure of single-object discovery (paper Tab. 7). Every processed image counts, whichever its objects' classes;
one without any object cannot be hit. Which objects (difficult, truncated, crowds) are annotated at all is the data
set's business.

Letters: M objects of one image, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from last_vit.boxes import box_iou
from last_vit.metrics.summed_counters import SummedTensors

MIN_IOU = 0.5


class CorLoc:
    """Streaming CorLoc with a breakdown by class, summed over all processes in `compute` and `compute_by_class`.

    By class, an image counts for every class that it shows, as hit when the box overlaps an object of that class.

    Args:
        classes: Names of the C classes; empty for no breakdown.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        by_class = (len(self.classes),)
        self._sums = SummedTensors(num_images=(), hits=(), iou=(), num_shown=by_class, class_hits=by_class)

    def update(self, box_xyxy: Sequence[float] | Tensor, objects_xyxy: Tensor, labels: Tensor | None = None) -> float:
        """Count one image.

        Args:
            box_xyxy: [4], the predicted box in pixels of the image.
            objects_xyxy: [M, 4], annotated objects in pixels of the image; M may be 0.
            labels: long [M] in [0, C); needed with `classes`.

        Returns:
            The largest IoU with any object, in [0, 1]; 0 without objects.

        Raises:
            ValueError: A box that is no box (NaN, no area), shapes that disagree, labels missing or out of range.
        """
        box = torch.as_tensor(box_xyxy, dtype=torch.float64).reshape(1, -1)
        if box.shape != (1, 4) or not bool((box[0, 2:] > box[0, :2]).all()):
            raise ValueError(f"the predicted box must be (x1, y1, x2, y2) with an area, got {box.flatten().tolist()}")
        if self.classes and (labels is None or labels.shape != objects_xyxy.shape[:1]):
            got = None if labels is None else tuple(labels.shape)
            raise ValueError(f"CorLoc by class needs one label per object: {len(objects_xyxy)} objects, labels {got}")
        iou = box_iou(box, objects_xyxy.double().reshape(-1, 4))[0]
        is_hit = iou >= MIN_IOU
        num_classes = len(self.classes)
        shown, class_hits = torch.zeros(num_classes), torch.zeros(num_classes)
        if self.classes and len(labels):
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise ValueError(f"labels must be in [0, {num_classes}), got {sorted(set(labels.tolist()))}")
            shown[labels] = 1
            class_hits[labels[is_hit]] = 1
        best = iou.max() if len(iou) else torch.zeros((), dtype=torch.float64)
        self._sums.add(num_images=torch.ones(()), hits=is_hit.any(), iou=best, num_shown=shown, class_hits=class_hits)
        return float(best)

    def compute(self) -> dict[str, float]:
        """CorLoc over everything counted by all processes.

        Returns:
            "corloc" in percent, "mean_iou" in percent (of each image's best IoU), and "num_images".

        Raises:
            ValueError: If no image was counted.
        """
        totals = self._sums.totals()
        num_images = int(totals["num_images"])
        if num_images == 0:
            raise ValueError("CorLoc of zero images is undefined: the data set gave none")
        return {
            "corloc": 100.0 * float(totals["hits"]) / num_images,
            "mean_iou": 100.0 * float(totals["iou"]) / num_images,
            "num_images": num_images,
        }

    def compute_by_class(self) -> dict[str, tuple[float, int]]:
        """Class -> (CorLoc in percent, images that show it), for the classes that any image shows."""
        totals = self._sums.totals()
        shown, hits = totals["num_shown"].tolist(), totals["class_hits"].tolist()
        return {
            name: (100.0 * hit / count, int(count))
            for name, hit, count in zip(self.classes, hits, shown, strict=True)
            if count
        }
