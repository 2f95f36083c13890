"""Classes of regions from text: cosine to the embedding of each name, times a temperature; its weighted loss.

The vocabulary is an input, not a weight: no checkpoint holds it, and it can be another one at every test.
"""

import torch
from class_embeddings import ClassEmbeddings
from torch import Tensor, nn
from torch.nn import functional as F

# Classes of less weight do not compete in the loss (F-ViT); with weight 0 the others would learn to outvote them.
_NO_WEIGHT = 1e-5


class TextClassifier(nn.Module):
    """Scores of C classes and the background, for any C.

    Args:
        vocabulary: Embeddings of the classes and of the background.
        is_base: bool [C], classes that have boxes in training; the others are novel.
        width: E, numbers per embedding of the CLIP tower whose features are compared with them.
        temperature: Start of the learned factor of the cosines. F-ViT: 50.
        fixed_temperature: Takes its place where given; the learned one is then kept but not trained. F-ViT: none in
            training, 50 in its transfer to other data sets.
        base_weight: Weight of base classes in the loss. F-ViT: 1.
        novel_weight: The same of novel classes; below 1e-5 they also do not compete. F-ViT: 0.
        background_weight: The same of the background. F-ViT: 0.6 (COCO), 0.9 (LVIS).
        zero_background: Score the background 0, as Detic does, whatever embedding there is; for embeddings without one.

    Raises:
        ValueError: See `set_vocabulary`; a negative weight, or none for the background.
    """

    def __init__(
        self,
        vocabulary: ClassEmbeddings,
        is_base: Tensor,
        width: int,
        *,
        temperature: float = 50.0,
        fixed_temperature: float | None = None,
        base_weight: float = 1.0,
        novel_weight: float = 0.0,
        background_weight: float = 0.6,
        zero_background: bool = False,
    ) -> None:
        super().__init__()
        if min(base_weight, novel_weight) < 0 or background_weight < _NO_WEIGHT:
            raise ValueError(
                "class weights must be at least 0 and the background's above 0, got base "
                f"{base_weight}, novel {novel_weight}, background {background_weight}"
            )
        self.temperature = nn.Parameter(torch.tensor(float(temperature)), requires_grad=fixed_temperature is None)
        self.fixed_temperature = fixed_temperature
        self.weights = (base_weight, novel_weight, background_weight)
        self.width = width
        self.zero_background = zero_background
        for name in ("text", "class_weights", "is_base"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.set_vocabulary(vocabulary, is_base)

    def set_vocabulary(self, vocabulary: ClassEmbeddings, is_base: Tensor) -> None:
        """Classify into other classes from now on.

        Raises:
            ValueError: Another width, no background, or an `is_base` of other classes; the old classes then stay.
        """
        if vocabulary.width != self.width:
            raise ValueError(
                f"the class embeddings have {vocabulary.width} numbers (text tower: {vocabulary.tower}), features of "
                f"this detector's CLIP have {self.width}: build them with that CLIP's own text tower, "
                "ov_detection/build_class_embeddings.py --model ..."
            )
        background_row = torch.zeros(self.width) if self.zero_background else vocabulary.background
        if background_row is None:
            raise ValueError(
                f"these class embeddings (tower: {vocabulary.tower}) have none for the background: build them with "
                "ov_detection/build_class_embeddings.py, which adds it, or train with classifier zero_background=True"
            )
        if is_base.shape != (len(vocabulary),) or is_base.dtype != torch.bool:
            raise ValueError(
                f"is_base must be bool [{len(vocabulary)}], one per class, got {is_base.dtype} {list(is_base.shape)}"
            )
        base, novel, background = self.weights
        device = self.temperature.device
        self.text = torch.cat([vocabulary.embeddings, background_row[None]]).to(device)
        self.is_base = is_base.to(device)
        self.class_weights = F.pad(torch.where(self.is_base, base, novel), (0, 1), value=background)

    @property
    def num_classes(self) -> int:
        """C, without the background."""
        return len(self.text) - 1

    def cosines(self, features: Tensor) -> Tensor:
        """[R, E] of any length and dtype -> float32 [R, C + 1], background last."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 cosines times 50 are off by tenths
            return F.normalize(features.float(), dim=1) @ self.text.T

    def forward(self, features: Tensor) -> Tensor:
        """[R, E] -> logits, float32 [R, C + 1], background last."""
        temperature = self.temperature if self.fixed_temperature is None else self.fixed_temperature
        return self.cosines(features) * temperature

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross entropy: the sum of weight times loss, over the number of regions; 0 for none.

        Args:
            logits: [R, C + 1] float32.
            labels: long [R] in [0, C]; C is background. A region of a class without weight adds 0.

        Raises:
            ValueError: A label outside [0, C].
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise ValueError(
                f"object labels go from {int(labels.min())} to {int(labels.max())}, the vocabulary has "
                f"{self.num_classes} classes: data set and class embeddings must list the same ones"
            )
        log_scores = logits.masked_fill(self.class_weights < _NO_WEIGHT, -torch.inf).log_softmax(dim=1)
        weights = self.class_weights[labels]
        losses = -log_scores.gather(1, labels[:, None]).squeeze(1)
        return (weights * losses.masked_fill(weights < _NO_WEIGHT, 0)).sum() / max(len(labels), 1)
