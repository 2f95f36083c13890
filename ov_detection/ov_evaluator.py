"""OV-COCO's and OV-LVIS's numbers as a detectron2 evaluator, over any number of processes.

Each process keeps what was found on its images; the main one gathers, counts each image once, and evaluates. All
images of the file must have been seen, or exactly those that were asked for: a part of a validation set never passes
for the whole. Classes are the file's by ascending id, as in `load_ov_json`.

A class without any object in the file has no AP. It is left out of every mean and counted; a group without any class
that has one gets no number at all. Where every class has objects, the means fit together:
AP50_all = (48 AP50_base + 17 AP50_novel) / 65 on OV-COCO.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_ap import KINDS, ClassAP, ImageDetections, detection_ap
from detection_dump import DumpWriter, only_images
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from ov_classes import FREQUENCIES, OvClasses, read_instances
from pycocotools import mask as mask_tools

from last_vit.checkpoint import shorten
from last_vit.runtime import get_logger

# COCO's count per class, of which its own metrics' last limit is 1000; LVIS's are of all classes together
MAX_DETS = {"coco": 1000, "lvis": 300}


class OvEvaluator(DatasetEvaluator):
    """AP50 of all, base and novel classes (COCO and others), or AP, APr, APc, APf (LVIS), of boxes and of masks.

    `kinds` are "box", "mask" or both, `novel` is as in `read_ov_classes`, `image_ids` are the images to be evaluated
    (None for all of the file). With a `dump`, what was found is written there.
    ValueError: As `read_instances`; an unknown kind or image.
    """

    def __init__(
        self,
        json_file: str | Path,
        kinds: Sequence[str] = ("box",),
        novel: Iterable[str] | None = None,
        image_ids: Iterable[int] | None = None,
        dump: DumpWriter | None = None,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"kinds must be of {', '.join(KINDS)}, got {list(kinds)}")
        self._kinds = tuple(kinds)
        self._content, self.classes = read_instances(Path(json_file), novel)
        self._json_file, self._dump = Path(json_file), dump
        if image_ids is not None:
            self._content = only_images(self._content, set(image_ids))
        self.num_images = len(self._content["images"])
        self._sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in self._content["images"]}
        self.reset()

    def reset(self) -> None:
        """Forget every detection."""
        self._found: list[ImageDetections] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what was found on some images: `instances` with pred_boxes, scores, pred_classes, for masks pred_masks.

        ValueError: Instances of another size than the image's, or no masks.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            number, instances = sample["image_id"], output["instances"]
            if tuple(instances.image_size) != self._sizes[number]:
                raise ValueError(
                    f"image {number} is {self._sizes[number]} (height, width), its detections are for "
                    f"{tuple(instances.image_size)}: give height and width with each input"
                )
            self._found.append(to_detections(number, instances, "mask" in self._kinds))
        if self._dump is not None:
            self._dump.add([sample["image_id"] for sample in inputs])

    def evaluate(self) -> dict[str, Any]:
        """Gather and evaluate; every process must call this together.

        Returns:
            In the main process "detection" -> metric -> percent, named as in `group_metrics`; those of masks, and
            LVIS's of boxes, have "mask_" and "box_" before them. Then the numbers of classes: base_classes and
            novel_classes with objects, and classes_without_objects. "per_class" is `per_class_rows`'s table. {} in the
            others.

        Raises:
            ValueError: Images without an answer (in the main process).
        """
        gathered = comm.gather(self._found)
        dumped = comm.gather(self._dump and self._dump.close())
        if not comm.is_main_process():
            return {}
        every = {image.image_id: image for part in gathered for image in part}  # samplers may fill up with repeats
        missing = self._sizes.keys() - every.keys()
        if missing:
            raise ValueError(
                f"{len(missing)} of {self.num_images} images have not been evaluated, such as "
                f"{shorten(sorted(missing), 3)}: a part of a set is evaluated with image_ids"
            )
        metrics: dict[str, float] = {}
        of_kinds: dict[str, ClassAP] = {}
        style = "lvis" if self.classes.is_lvis else "coco"
        detections = [every[number] for number in sorted(every)]
        for kind in self._kinds:
            of_kinds[kind] = class_ap = detection_ap(self._content, self.classes, detections, kind, MAX_DETS[style])
            prefix = f"{kind}_" if kind == "mask" or style == "lvis" else ""
            groups = group_metrics(class_ap, self.classes)
            metrics.update({f"{prefix}{name}": value for name, value in groups.items()})
        has_objects, is_base = ~np.isnan(class_ap.ap), self.classes.is_base.numpy()
        metrics["base_classes"] = int((has_objects & is_base).sum())
        metrics["novel_classes"] = int((has_objects & ~is_base).sum())
        metrics["classes_without_objects"] = without = int((~has_objects).sum())
        if without:
            get_logger().info("%d of %d classes have no object and are in no mean", without, len(self.classes))
        if self._dump is not None:
            about = {"kinds": self._kinds, "metrics": metrics, "max_dets": MAX_DETS[style]}
            self._dump.finish(detections, self.classes, self._json_file, dumped, about)
        return {"detection": metrics, "per_class": per_class_rows(self._content, self.classes, of_kinds)}


def per_class_rows(
    content: Mapping[str, Any], classes: OvClasses, of_kinds: Mapping[str, ClassAP]
) -> list[list[float | str]]:
    """Name, whether base, number of objects (crowds are none), AP and AR of each kind in percent; a heading first.

    Classes without objects have no line.
    """
    objects = Counter(entry["category_id"] for entry in content["annotations"] if not entry.get("iscrowd"))
    heading = ["class", "split", "objects", *(f"{kind}_{name}" for kind in of_kinds for name in ("ap", "ar"))]
    rows: list[list[float | str]] = [heading]
    for label, (name, is_base) in enumerate(zip(classes.names, classes.is_base.tolist(), strict=True)):
        numbers = [float(values[label]) for found in of_kinds.values() for values in (found.ap, found.ar)]
        if not np.isnan(numbers).any():
            percent = [round(100 * number, 2) for number in numbers]
            rows.append([name, "base" if is_base else "novel", objects[classes.category_ids[label]], *percent])
    return rows


def group_metrics(class_ap: ClassAP, classes: OvClasses) -> dict[str, float]:
    """Means over groups of classes, in percent; groups without a class that has objects are not in it.

    LVIS: ap, ap50, apr, apc, apf (APr is that of the novel classes). Else: ap50_all, ap50_base, ap50_novel, ap_all,
    ap_base, ap_novel.
    """
    every, is_base = np.ones(len(classes), dtype=bool), classes.is_base.numpy()
    if classes.is_lvis:
        groups = {f"ap{kind}": (class_ap.ap, np.array(classes.frequencies) == kind) for kind in FREQUENCIES}
        groups = {"ap": (class_ap.ap, every), "ap50": (class_ap.ap50, every), **groups}
    else:
        groups = {
            f"{metric}_{name}": (values, mask)
            for metric, values in (("ap50", class_ap.ap50), ("ap", class_ap.ap))
            for name, mask in (("all", every), ("base", is_base), ("novel", ~is_base))
        }
    found = {name: values[mask & ~np.isnan(values)] for name, (values, mask) in groups.items()}
    return {name: 100 * float(values.mean()) for name, values in found.items() if len(values)}


def to_detections(image_id: int, instances: Instances, masks: bool) -> ImageDetections:
    """What a detector answered about an image; ValueError if `masks` are wanted and there are none."""
    run_lengths = None
    if masks:
        if not instances.has("pred_masks"):
            raise ValueError(
                f"image {image_id} has no pred_masks: evaluate boxes alone, or give the detector a mask head"
            )
        # pycocotools wants the pixels of a column together: put so where the masks are, before they leave a GPU
        columns = instances.pred_masks.transpose(1, 2).contiguous().cpu().view(torch.uint8)
        codes = mask_tools.encode(columns.numpy().transpose(2, 1, 0))
        run_lengths = [{**code, "counts": code["counts"].decode("ascii")} for code in codes]
    return ImageDetections(
        image_id,
        instances.pred_boxes.tensor.float().cpu().numpy(),
        instances.scores.float().cpu().numpy(),
        instances.pred_classes.cpu().numpy(),
        run_lengths,
    )
