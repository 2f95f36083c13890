"""The settings of the published zero-shot segmentation numbers: one record per data set and protocol.

Protocols are those of the code of SCLIP, NACLIP, ClearCLIP and ProxyCLIP, all on mmsegmentation 1.x. Here they mean
everything around the model: class names, image size, windows, softmax scale, thresholds, refinement. What a method does
to the model's last block is the evaluator's own option.

ProxyCLIP's thresholds depend on its second, proxy network; here are those that its code has for a plain CLIP ViT-B.
"""

from dataclasses import dataclass, replace

from class_names import ClassNames
from seg_class_names import DISPLAY_NAMES, class_names

IGNORED = 255
DATASETS = tuple(DISPLAY_NAMES)
PROTOCOLS = ("sclip", "naclip", "clearclip", "proxyclip")
CUSTOM = "custom"
ZERO_LABELS = ("class", "background", "ignored")

_TITLES = {
    "voc20": "VOC20",
    "voc21": "VOC21",
    "context59": "Context59",
    "context60": "Context60",
    "coco_object": "COCO-Object",
    "coco_stuff": "COCO-Stuff171",
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
}
_VAL_IMAGES = {
    "voc20": 1449,
    "voc21": 1449,
    "context59": 5104,
    "context60": 5104,
    "coco_object": 5000,
    "coco_stuff": 5000,
    "ade20k": 2000,
    "cityscapes": 500,
}


@dataclass(frozen=True)
class SegmentationSetting:
    """How one data set is evaluated under one protocol.

    Attributes:
        dataset: Key, one of `DATASETS` or "custom".
        protocol: One of `PROTOCOLS`.
        name: The data set's name in tables.
        class_names: Names per class, synonyms included, in the order of the labels.
        has_background: Class 0 is the background; it counts in the mean.
        reduce_zero_label: In the label files 0 is ignored and class c is c + 1.
        short_side: Of the image as the model sees it, in pixels, unless the longer side would pass 2048.
        crop: Of a window, in pixels of that image; 0 is the whole image at once.
        stride: From window to window.
        logit_scale: Factor of the cosines in the softmax over all names.
        prob_threshold: Pixels whose best probability is below become class 0; 0 is no threshold.
        area_threshold: Classes with less of an image's foreground than this are dropped; None drops none.
        uses_pamr: Whether the protocol's numbers are refined by PAMR.
        pad_to_patch: Windows are padded with zeros to a multiple of the patch, not floored.
        expected_images: Of the official validation set; None for a custom one.
        ignored: Label of pixels that do not count.
    """

    dataset: str
    protocol: str
    name: str
    class_names: ClassNames
    has_background: bool
    reduce_zero_label: bool
    short_side: int = 336
    crop: int = 224
    stride: int = 112
    logit_scale: float = 40.0
    prob_threshold: float = 0.0
    area_threshold: float | None = None
    uses_pamr: bool = False
    pad_to_patch: bool = False
    expected_images: int | None = None
    ignored: int = IGNORED

    @property
    def num_classes(self) -> int:
        """C, the background included."""
        return len(self.class_names)


_BACKGROUND = frozenset({"voc21", "context60", "coco_object"})
_ZERO_IS_IGNORED = frozenset({"voc20", "context59", "ade20k"})
_DEFAULTS = {
    "sclip": {},
    "naclip": {"uses_pamr": True},
    "clearclip": {"short_side": 448, "crop": 448, "stride": 224, "logit_scale": 50.0, "pad_to_patch": True},
    "proxyclip": {"crop": 336},
}
_OWN = {
    ("sclip", "voc21"): {"logit_scale": 65.0, "prob_threshold": 0.1, "area_threshold": 0.1},
    ("sclip", "context60"): {"logit_scale": 50.0, "prob_threshold": 0.1},
    ("sclip", "coco_object"): {"logit_scale": 50.0, "prob_threshold": 0.1},
    ("sclip", "coco_stuff"): {"short_side": 448},
    ("sclip", "cityscapes"): {"short_side": 560},
    ("naclip", "voc20"): {"crop": 0},
    ("naclip", "voc21"): {"crop": 0, "prob_threshold": 0.1},
    ("naclip", "context60"): {"prob_threshold": 0.1},
    ("naclip", "coco_object"): {"prob_threshold": 0.1},
    ("naclip", "cityscapes"): {"short_side": 560},
    ("clearclip", "voc21"): {"prob_threshold": 0.5},
    ("clearclip", "context60"): {"prob_threshold": 0.15},
    ("clearclip", "coco_object"): {"prob_threshold": 0.4},
    ("clearclip", "cityscapes"): {"crop": 224},
    ("proxyclip", "voc21"): {"prob_threshold": 0.1},
    ("proxyclip", "context60"): {"prob_threshold": 0.05},
    ("proxyclip", "coco_object"): {"prob_threshold": 0.1},
    ("proxyclip", "ade20k"): {"short_side": 448},
    ("proxyclip", "cityscapes"): {"short_side": 448, "crop": 224},
}


def _setting(dataset: str, protocol: str) -> SegmentationSetting:
    return SegmentationSetting(
        dataset=dataset,
        protocol=protocol,
        name=_TITLES[dataset],
        class_names=class_names(dataset, protocol),
        has_background=dataset in _BACKGROUND,
        reduce_zero_label=dataset in _ZERO_IS_IGNORED,
        expected_images=_VAL_IMAGES[dataset],
        **{**_DEFAULTS[protocol], **_OWN.get((protocol, dataset), {})},
    )


SEGMENTATION_SETTINGS: dict[tuple[str, str], SegmentationSetting] = {
    (dataset, protocol): _setting(dataset, protocol) for dataset in DATASETS for protocol in PROTOCOLS
}


def find_setting(dataset: str, protocol: str) -> SegmentationSetting:
    """The record of a data set under a protocol.

    Raises:
        ValueError: Another data set or protocol; the message lists them.
    """
    for kind, value, known in (("data set", dataset, DATASETS), ("protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}, got {value!r}")
    return SEGMENTATION_SETTINGS[dataset, protocol]


def custom_setting(
    protocol: str, class_names: ClassNames, zero_label: str = "class", name: str = CUSTOM
) -> SegmentationSetting:
    """A record for data of one's own: a protocol's settings for the published data set that is most like it.

    With a background that is Context60, a set of any things and stuff; without, Context59.

    Args:
        protocol: One of `PROTOCOLS`.
        class_names: As `read_class_names` gives them; with a background its first entry names it.
        zero_label: What 0 means in the label files. "class": classes are 0 to C - 1. "background": the same, and class
            0 is the background, which thresholds apply to. "ignored": classes are 1 to C, and 0 does not count.
        name: Of the data in tables.

    Raises:
        ValueError: Another protocol or meaning of zero, or more classes than label files can hold.
    """
    if zero_label not in ZERO_LABELS:
        raise ValueError(f"zero_label must be one of {', '.join(ZERO_LABELS)}, got {zero_label!r}")
    most = IGNORED - (zero_label == "ignored")
    if not 1 <= len(class_names) <= most:
        raise ValueError(
            f"8-bit labels, of which {IGNORED} is ignored, hold 1 to {most} classes, got {len(class_names)}"
        )
    base = find_setting("context60" if zero_label == "background" else "context59", protocol)
    return replace(
        base,
        dataset=CUSTOM,
        name=name,
        class_names=class_names,
        has_background=zero_label == "background",
        reduce_zero_label=zero_label == "ignored",
        expected_images=None,
    )
