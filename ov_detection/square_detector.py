"""What the detectors here share: images that must fit the backbone's square, and what their weights belong to."""

from collections.abc import Mapping
from typing import Any

from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import ImageList


class SquareDetector(GeneralizedRCNN):
    """`GeneralizedRCNN` on RGB images, whose backbone pads them to a square (see detectron2's `padding_constraints`).

    A subclass says in `about` what its weights were trained with, which a checkpoint records as "detector", in
    `belongs_to` which parts of that must be the same for weights to be loaded: part -> (what it is, what to do); and in
    `described` what a result's record says of it.
    """

    about: Mapping[str, Any]
    belongs_to: Mapping[str, tuple[str, str]]
    described: Mapping[str, Any]

    def take(self, about: Mapping[str, Any]) -> None:
        """Told what the weights that were just loaded were trained with."""

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad with zeros, the mean colour, at the right and the bottom.

        ValueError: An image larger than the backbone's square, which detectron2 would cut without a word.
        """
        square = self.backbone.padding_constraints["square_size"]
        for sample in batched_inputs:
            if 0 < square < max(sample["image"].shape[1:]):
                raise ValueError(
                    f"image {sample.get('file_name', 'without name')} is {tuple(sample['image'].shape[1:])} (height, "
                    f"width), larger than the backbone's square_size {square}: resize it to fit, or set square_size=0"
                )
        return super().preprocess_image(batched_inputs)
