"""The settings of the published zero-shot segmentation numbers: one record per data set and protocol.

Protocols are those of the code of SCLIP, NACLIP, ClearCLIP and ProxyCLIP (thresholds of a plain CLIP ViT-B), all on
mmsegmentation 1.x: everything around the model, from class names to refinement. What a method does to the model's last
block is the evaluator's own option. The tables are in seg_protocols.json.

Class names are the files that the published numbers were made with, odd ones included: "ship" for VOC's boat, words
written together ("trafficlight") in COCO-Stuff, ADE20K and Cityscapes. A class 0 of several names is the background
said in words. COCO-Object's holds "bed", a class of its own, too: the background wins the tie, so no pixel becomes a
bed under SCLIP, NACLIP and ProxyCLIP; that is in their numbers.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from class_names import ClassNames
from seg_id_tables import IGNORED

_TABLES = json.loads(Path(__file__).with_name("seg_protocols.json").read_text(encoding="utf-8"))
DATASETS, PROTOCOLS = tuple(_TABLES["datasets"]), tuple(_TABLES["protocols"])
CUSTOM = "custom"
ZERO_LABELS = ("class", "background", "ignored")


@dataclass(frozen=True)
class SegmentationSetting:
    """How one data set is evaluated under one protocol."""

    dataset: str  # one of `DATASETS`, or "custom"
    protocol: str
    name: str  # the data set's in tables
    class_names: ClassNames  # synonyms included, in the order of the labels
    has_background: bool = False  # class 0 is the background; it counts in the mean
    reduce_zero_label: bool = False  # in the label files 0 is ignored and class c is c + 1
    short_side: int = 336  # of the image as the model sees it, in pixels, unless the longer side would pass 2048
    crop: int = 224  # of a window, in pixels of that image; 0 is the whole image at once
    stride: int = 112  # from window to window
    logit_scale: float = 40.0  # factor of the cosines in the softmax over all names
    prob_threshold: float = 0.0  # pixels whose best probability is below become class 0; 0 is no threshold
    area_threshold: float | None = None  # classes with less of an image's foreground are dropped; None drops none
    uses_pamr: bool = False  # whether the protocol's numbers are refined by PAMR
    pad_to_patch: bool = False  # windows are padded with zeros to a multiple of the patch, not floored

    @property
    def num_classes(self) -> int:
        """C, the background included."""
        return len(self.class_names)


def display_names(dataset: str) -> tuple[str, ...]:
    """One plain name per class of a data set, the background included, in the order of the labels."""
    return tuple(_TABLES["datasets"][dataset]["classes"].split(", "))


def find_setting(dataset: str, protocol: str) -> SegmentationSetting:
    """The record of a data set under a protocol; ValueError lists the known ones."""
    for kind, value, known in (("data set", dataset, DATASETS), ("protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}, got {value!r}")
    synonyms: dict[str, str] = _TABLES["synonyms"][protocol].get(dataset, {})
    settings: dict[str, Any] = _TABLES["protocols"][protocol]
    return SegmentationSetting(
        dataset=dataset,
        protocol=protocol,
        class_names=tuple(tuple(synonyms.get(name, name).split(", ")) for name in display_names(dataset)),
        **{key: value for key, value in _TABLES["datasets"][dataset].items() if key != "classes"},
        **{**settings["all"], **settings.get(dataset, {})},
    )


def custom_setting(
    protocol: str, class_names: ClassNames, zero_label: str = "class", name: str = CUSTOM
) -> SegmentationSetting:
    """A record for data of one's own: a protocol's settings for the published data set that is most like it.

    With a background that is Context60, a set of any things and stuff; without, Context59. `zero_label`, one of
    `ZERO_LABELS`, is what 0 means in the label files. "class": classes are 0 to C - 1. "background": the same, and
    class 0, which the first of `class_names` names, is the background, to which thresholds apply. "ignored": classes
    are 1 to C, and 0 does not count. `name` is the data's in tables.
    """
    most = IGNORED - (zero_label == "ignored")
    if not 1 <= len(class_names) <= most:
        raise ValueError(
            f"8-bit labels, of which {IGNORED} is ignored, hold 1 to {most} classes, got {len(class_names)}"
        )
    base = find_setting("context60" if zero_label == "background" else "context59", protocol)
    own = {"has_background": zero_label == "background", "reduce_zero_label": zero_label == "ignored"}
    return replace(base, dataset=CUSTOM, name=name, class_names=class_names, **own)
