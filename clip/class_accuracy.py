"""Top-k accuracy class by class, streaming and distributed; its totals are `TopK`'s."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from last_vit.metrics.summed_counters import SummedTensors
from last_vit.metrics.top_k import TopK


class ClassAccuracy:
    """`TopK`, and how its hits fall on the classes.

    Args:
        num_classes: C.
        ks: As in `TopK`.

    Raises:
        ValueError: As `TopK`.
    """

    def __init__(self, num_classes: int, ks: Sequence[int] = (1, 5)) -> None:
        self.num_classes = num_classes
        self._top_k = TopK(ks)
        self._counts = SummedTensors(images=(num_classes,), **{f"acc{k}": (num_classes,) for k in self._top_k.ks})

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Args:
            logits: [B, C], any float dtype.
            labels: long [B] in [0, C).

        Raises:
            ValueError: As `TopK.update`.
        """
        self._top_k.update(logits, labels)
        ks = self._top_k.ks
        is_hit = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == labels[:, None]
        of_class = F.one_hot(labels, self.num_classes)
        hits = {f"acc{k}": (of_class * is_hit[:, :k].any(dim=1)[:, None]).sum(dim=0) for k in ks}
        self._counts.add(images=of_class.sum(dim=0), **hits)

    def compute(self) -> dict[str, float | int]:
        """Accuracies over everything counted by all processes.

        Returns:
            What `TopK.compute` returns, and "class_mean_acc<k>" in percent: the mean over the classes with images.

        Raises:
            ValueError: As `TopK.compute`.
        """
        overall = self._top_k.compute()
        rows = [row for row in self.per_class() if row["images"]]
        means = {f"class_mean_acc{k}": sum(row[f"acc{k}"] for row in rows) / len(rows) for k in self._top_k.ks}
        return {**overall, **means}

    def per_class(self) -> list[dict[str, float | int | None]]:
        """Of each class "images" and "acc<k>" in percent, None for a class without images; all processes together."""
        totals = self._counts.totals()
        images = totals.pop("images")
        rows = torch.stack([images, *(100 * hits / images for hits in totals.values())], dim=1).tolist()
        return [
            {"images": int(count), **{key: value if count else None for key, value in zip(totals, shares, strict=True)}}
            for count, *shares in rows
        ]
