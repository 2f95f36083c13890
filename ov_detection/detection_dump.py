"""Detections on disk, to be looked into, and scored anew without the detector (rescore.py, inspect_detections.py).

    detections.json        COCO's results: image_id, category_id, bbox (x, y, w, h), score, masks' segmentation
    regions_*.zip          what F-ViT's scores are fused from, before threshold, NMS and limit: `Regions` per image
    dump.json              of which file, images and settings; written last, so a dump without it is not whole
    record.json            the run's record, once it has ended

Every image has the regions of which its detections are, and `evaluation.dump_regions` others, those of the highest
scores first; 1000 is all that F-ViT has. A region takes 4 (2 C + 6) bytes: with 100 of them an image of OV-COCO takes
54 KB and the 5,000 images 0.3 GB, with 1000 of them 2.7 GB.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from detection_ap import ImageDetections
from fvit.box_predictor import Regions
from fvit.fvit_heads import FViTRoIHeads
from ov_classes import OvClasses, read_instances
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import file_sha256, shorten
from last_vit.runtime import is_main_process, rank


class DumpWriter:
    """Writes one folder; every process has its own. Of F-ViT the heads keep regions from now on.

    ValueError for a negative number of regions.
    """

    def __init__(self, folder: str | Path, heads: nn.Module | None = None, dump_regions: int = 0) -> None:
        if dump_regions < 0:
            raise ValueError(f"evaluation.dump_regions must be at least 0, got {dump_regions}")
        self.folder, self.scoring, self._heads = Path(folder), None, None
        if isinstance(heads, FViTRoIHeads):
            heads.keep_regions, self.scoring, self._heads = dump_regions, heads.box_predictor.scoring(), heads
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            for name in ("dump.json", "record.json"):
                (self.folder / name).unlink(missing_ok=True)
        self._file, self._is_complete = ZipFile(self.folder / f"regions_{rank()}.zip", "w"), True

    def add(self, image_ids: Sequence[int]) -> None:
        """The regions, if there are some, of the images that the heads saw last."""
        if self._heads is None or self._heads.regions is None:
            return
        for image_id, regions in zip(image_ids, self._heads.regions, strict=True):
            parts = {name: torch.as_tensor(part) for name, part in regions._asdict().items()}
            self._file.writestr(f"{image_id}.safetensors", save(parts))
            self._is_complete &= regions.is_complete

    def close(self) -> tuple[str | None, bool]:
        """This process's file, None if nothing is in it, and whether all its images have all their regions."""
        self._file.close()
        return (Path(self._file.filename).name if self._file.namelist() else None), self._is_complete

    def finish(
        self,
        detections: Sequence[ImageDetections],
        classes: OvClasses,
        json_file: Path,
        closed: Sequence[tuple[str | None, bool]],
        about: Mapping[str, Any],
    ) -> None:
        """In the main process, with what `close` gave in each: the detections of every image, and `about` the dump."""
        lines = [json.dumps(entry) for image in detections for entry in image.as_results(classes)]
        about = {
            **about,
            "regions": [name for name, _ in closed if name],
            "all_regions": all(is_complete for _, is_complete in closed),
            "json": json_file.name,
            "json_sha256": file_sha256(json_file),
            "novel": [name for name in classes.names if name not in classes.base_names],
            "scoring": self.scoring,
            "num_detections": len(lines),
            "image_ids": [image.image_id for image in detections],
        }
        for name, text in (("detections", "[" + ",\n".join(lines) + "]"), ("dump", json.dumps(about))):
            with atomic_file(self.folder / f"{name}.json") as file:
                file.write(f"{text}\n".encode("ascii"))


class Dump:
    """A folder of `DumpWriter`: `about` it, the run's `record`; of its file the `content` of its images, `classes`.

    FileNotFoundError: No whole dump, no such file. ValueError: A dump of another file, or one that is damaged.
    """

    def __init__(self, folder: Path, json_file: Path) -> None:
        self.folder = folder
        try:
            self.about = json.loads((folder / "dump.json").read_text(encoding="ascii"))
            if not isinstance(self.about, dict) or "json_sha256" not in self.about:
                raise ValueError("it says of no file that it was made on it")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} has no dump.json: give a folder that lazy_train.py wrote with evaluation.dump=FOLDER; it is "
                f"written last, so an evaluation that was stopped leaves none"
            ) from error
        except ValueError as error:
            raise ValueError(f"{folder}/dump.json is damaged ({error}): evaluate again") from error
        record = folder / "record.json"
        self.record = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if file_sha256(json_file) != self.about["json_sha256"]:
            raise ValueError(
                f"{folder} was made on {self.about['json']}, with sha256 {self.about['json_sha256'][:16]}; {json_file} "
                f"is another split or version, {file_sha256(json_file)[:16]}: its objects are not those of the dump"
            )
        content, self.classes = read_instances(json_file, self.about["novel"])
        self.content = only_images(content, set(self.about["image_ids"]))
        self.sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in self.content["images"]}

    def detections(self) -> list[ImageDetections]:
        """What was found, as evaluated, an entry per image; ValueError for a file that is cut or was changed."""
        path, of_image = self.folder / "detections.json", {number: [] for number in self.about["image_ids"]}
        try:
            entries = json.loads(path.read_text(encoding="ascii"))
            for entry in entries:
                of_image[entry["image_id"]].append(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): evaluate again") from error
        if len(entries) != self.about["num_detections"]:
            raise ValueError(f"{path} has {len(entries)} detections, {self.about['num_detections']} were written")
        return [_from_results(number, entries, self.classes) for number, entries in of_image.items()]

    def scoring(self) -> dict[str, Any]:
        """The settings that the run scored with; ValueError for a dump without regions."""
        if not self.about["regions"]:
            raise ValueError(
                f"{self.folder} has no regions to score anew: only F-ViT with vision_language_score=True has two scores"
            )
        return self.about["scoring"]

    def regions(self) -> Iterator[tuple[int, Regions]]:
        """Image ids and regions, one by one; ValueError for a file that is cut or missing."""
        left = set(self.about["image_ids"])
        try:
            for name in self.about["regions"]:
                with ZipFile(self.folder / name) as file:
                    for number in (int(Path(entry).stem) for entry in file.namelist()):
                        if number in left:  # samplers may fill up with repeats
                            left.remove(number)
                            parts = load(file.read(f"{number}.safetensors"))
                            yield number, Regions(**parts | {"input_size": tuple(parts["input_size"].tolist())})
        except (OSError, BadZipFile, SafetensorError) as error:
            raise ValueError(f"{self.folder / name} is cut or missing ({error}): evaluate again") from error
        if left:
            raise ValueError(f"{self.folder} has no regions of {len(left)} images, such as {shorten(sorted(left), 3)}")


def only_images(content: Mapping[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """The content of some images alone; ValueError for one that is not in it."""
    images = [entry for entry in content["images"] if entry["id"] in image_ids]
    if len(images) != len(image_ids):
        raise ValueError(f"{len(image_ids) - len(images)} of the images to be evaluated are not in the file")
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in image_ids]
    return {**content, "images": images, "annotations": annotations}


def _from_results(image_id: int, entries: Sequence[Mapping[str, Any]], classes: OvClasses) -> ImageDetections:
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([entry["score"] for entry in entries], dtype=np.float32)
    labels = np.array([classes.label_of[entry["category_id"]] for entry in entries], dtype=np.int64)
    has_masks = all("segmentation" in entry for entry in entries)
    masks = [entry["segmentation"] for entry in entries] if has_masks else None
    return ImageDetections(image_id, boxes.astype(np.float32), scores, labels, masks)
