"""Top-k accuracy in percent, streaming and distributed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from last_vit.metrics.summed_counters import SummedCounters


class TopK:
    """Share of images whose label is among the k largest logits, for every k >= 1 of `ks`.

    A NaN among an image's logits makes `compute` raise instead of counting an arbitrary class.
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        self.ks = tuple(ks)
        self._counters = SummedCounters("num_images", "num_nan", *(f"acc{k}" for k in self.ks))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits [B, C] against labels, long [B]; with fewer classes than k, every image is a top-k hit."""
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"expected logits [B, C] and labels [B], got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        ranked = logits.topk(min(max(self.ks), logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        self._counters.add(
            num_images=torch.tensor(len(labels), device=hits.device),
            num_nan=logits.isnan().any(dim=1).sum(),
            **{f"acc{k}": hits[:, :k].any(dim=1).sum() for k in self.ks},
        )

    def compute(self) -> dict[str, float | int]:
        """Accuracies "acc<k>" in percent, and "num_images", of all processes; ValueError for no image and for NaN."""
        totals = self._counters.totals()
        num_images, num_nan = int(totals.pop("num_images")), int(totals.pop("num_nan"))
        if num_images == 0:
            raise ValueError("top-k accuracy of zero images is undefined; is the data set or its filter empty?")
        if num_nan:
            raise ValueError(f"{num_nan} of {num_images} images have NaN logits; check the checkpoint and the inputs")
        return {**{name: 100.0 * hits / num_images for name, hits in totals.items()}, "num_images": num_images}
