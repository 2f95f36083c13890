"""Classes of regions from text: cosine to the embedding of each name, times a temperature; its weighted loss.

The vocabulary is an input, not a weight: no checkpoint holds it, and it can be another one at every test.
"""

import torch
from class_embeddings import ClassEmbeddings
from torch import Tensor, nn
from torch.nn import functional as F


class TextClassifier(nn.Module):
    """Scores of C classes and the background, for any C.

    Classes that are base (bool [C]) have boxes in training; the others are novel: they have no weight in the loss and
    do not compete there, or base classes would learn to outvote them (F-ViT). Base classes have weight 1, the
    background `background_weight`. `width` is E, of the CLIP features that are compared with the embeddings;
    `temperature` is the start of the cosines' learned factor, `fixed_temperature` a factor in its place.
    `zero_background` scores the background 0, as Detic does, for embeddings without one.
    ValueError: Another width, no background, an `is_base` of other classes, a background without weight.
    """

    def __init__(
        self,
        vocabulary: ClassEmbeddings,
        is_base: Tensor,
        width: int,
        *,
        temperature: float = 50.0,
        fixed_temperature: float | None = None,
        background_weight: float = 0.6,
        zero_background: bool = False,
    ) -> None:
        super().__init__()
        if background_weight <= 0:
            raise ValueError(f"background_weight must be above 0, got {background_weight}")
        if vocabulary.width != width:
            raise ValueError(
                f"the class embeddings have {vocabulary.width} numbers (text tower: {vocabulary.tower}), features of "
                f"this detector's CLIP have {width}: build them with that CLIP's own text tower, "
                "ov_detection/build_class_embeddings.py --model ..."
            )
        background = torch.zeros(width) if zero_background else vocabulary.background
        if background is None:
            raise ValueError(
                f"these class embeddings (tower: {vocabulary.tower}) have none for the background: build them with "
                "ov_detection/build_class_embeddings.py, which adds it, or train with classifier zero_background=True"
            )
        if is_base.shape != (len(vocabulary),) or is_base.dtype != torch.bool:
            raise ValueError(
                f"is_base must be bool [{len(vocabulary)}], one per class, got {is_base.dtype} {list(is_base.shape)}"
            )
        self.width, self.num_classes = width, len(vocabulary)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)), requires_grad=fixed_temperature is None)
        self.fixed_temperature = fixed_temperature
        weights = F.pad(is_base.float(), (0, 1), value=background_weight)
        self.register_buffer("text", torch.cat([vocabulary.embeddings, background[None]]), persistent=False)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("is_base", is_base, persistent=False)

    @property
    def factor(self) -> Tensor | float:
        """Of the cosines, learned or fixed."""
        return self.temperature if self.fixed_temperature is None else self.fixed_temperature

    def cosines(self, features: Tensor) -> Tensor:
        """[R, E] of any length and dtype -> float32 [R, C + 1], background last."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 cosines times 50 are off by tenths
            return F.normalize(features.float(), dim=1) @ self.text.T

    def forward(self, features: Tensor) -> Tensor:
        """[R, E] -> logits, float32 [R, C + 1], background last."""
        return self.cosines(features) * self.factor

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross entropy: the sum of weight times loss, over the number of regions; 0 for none.

        Args:
            logits: [R, C + 1] float32.
            labels: long [R] in [0, C]; C is background. A region of a novel class adds 0.

        Raises:
            ValueError: A label outside [0, C].
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise ValueError(
                f"object labels go from {int(labels.min())} to {int(labels.max())}, the vocabulary has "
                f"{self.num_classes} classes: data set and class embeddings must list the same ones"
            )
        log_scores = logits.masked_fill(self.class_weights == 0, -torch.inf).log_softmax(dim=1)
        weights = self.class_weights[labels]
        losses = -log_scores.gather(1, labels[:, None]).squeeze(1)
        return (weights * losses.masked_fill(weights == 0, 0)).sum() / max(len(labels), 1)
