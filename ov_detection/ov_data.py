"""Open-vocabulary detection sets as what trainers read: torch data sets, their loaders, and detectron2's catalogue.

Nothing happens at import. `OvImageSet` stands in a LazyConfig, under the loaders of this file; a set is registered
under a name only for those tools of detectron2 that ask the catalogue.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog
from ov_classes import OvClasses
from ov_json import OvImages, load_ov_json
from ov_mapper import OvMapper
from torch.utils.data import DataLoader, Dataset

from last_vit.data.loaders import build_test_loader, build_train_loader
from last_vit.runtime import get_logger


class OvImageSet(Dataset):
    """The images of a JSON file, one mapped sample per image.

    Attributes:
        classes: Of the file.
        json_file: The file.
        novel: As given.
        image_ids: Of the images, in order.
        size: As given.

    Args:
        json_file: As in `load_ov_json`.
        image_root: As in `load_ov_json`.
        size: Side of the square that images are brought to, in pixels.
        train: Augmented samples with objects of base classes; else resized images without.
        masks: Give masks too (training).
        novel: As in `read_ov_classes`.
        augment: As in `OvMapper`.
        max_images: Keep the first ones by image id only; None keeps all.

    Raises:
        FileNotFoundError: As in `load_ov_json`.
        ValueError: As in `load_ov_json` and `OvMapper`; `max_images` below 1.
    """

    def __init__(
        self,
        json_file: str | Path,
        image_root: str | Path,
        size: int,
        train: bool,
        masks: bool = False,
        novel: Iterable[str] | None = None,
        augment: bool = True,
        max_images: int | None = None,
    ) -> None:
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images must be at least 1, got {max_images}")
        self._mapper = OvMapper(size, train, masks, augment)
        self.novel = None if novel is None else tuple(novel)
        images = load_ov_json(json_file, image_root, train, masks, self.novel)
        self.json_file, self.size = Path(json_file), size
        self.classes = images.classes
        records = images.records[:max_images]
        self.image_ids = tuple(record["image_id"] for record in records)
        self._records = DatasetFromList(records, copy=False)
        for reason, count in images.left_out.items():
            get_logger().info("%s: left out %d x %s", self.json_file.name, count, reason)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._mapper(self._records[index])

    def __repr__(self) -> str:
        return f"OvImageSet({self.json_file.name}, {len(self)} images, {len(self.classes)} classes)"


def build_ov_train_loader(dataset: OvImageSet, batch_size: int, num_workers: int, seed: int = 0) -> DataLoader:
    """`build_train_loader` with batches that are lists of samples: order and augmentation are functions of the seed."""
    return build_train_loader(dataset, batch_size, num_workers, seed, collate=as_list)


def build_ov_test_loader(dataset: OvImageSet, batch_size: int, num_workers: int) -> DataLoader:
    """`build_test_loader` with batches that are lists of samples: each image in exactly one process."""
    return build_test_loader(dataset, batch_size, num_workers, collate=as_list)


def as_list(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """detectron2's batch: the samples, as they are."""
    return samples


def check_same_classes(first: OvClasses, second: OvClasses) -> None:
    """Refuse sets whose labels do not mean the same.

    Raises:
        ValueError: Other names, order or split.
    """
    if first.names != second.names or first.split.novel.tolist() != second.split.novel.tolist():
        differing = sorted(set(first.names) ^ set(second.names))[:5]
        raise ValueError(
            f"labels would not mean the same: the sets have {len(first)} and {len(second)} classes, or another order "
            f"or split{f' (such as {differing})' if differing else ''}; make both files with the same tool"
        )


def register_ov_set(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    train: bool,
    masks: bool = False,
    novel: Iterable[str] | None = None,
) -> None:
    """Put a set into detectron2's `DatasetCatalog`, to be read when it is first asked for; and into `MetadataCatalog`.

    The metadata has json_file and image_root at once, and thing_classes, thing_dataset_id_to_contiguous_id,
    base_classes and novel_classes once the set has been read. The same set may be registered again.

    Args:
        name: In the catalogue.
        json_file: As in `load_ov_json`.
        image_root: As in `load_ov_json`.
        train: As in `load_ov_json`.
        masks: As in `load_ov_json`.
        novel: As in `read_ov_classes`.

    Raises:
        ValueError: Another set has this name.
    """
    novel = None if novel is None else tuple(novel)
    source = (str(json_file), str(image_root), train, masks, novel)
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        if metadata.get("ov_source") != source:
            raise ValueError(f"the catalogue has another set of the name {name!r}: take another name")
        return

    def read() -> list[dict[str, Any]]:
        images: OvImages = load_ov_json(json_file, image_root, train, masks, novel)
        classes, novel_mask = images.classes, images.classes.split.novel.tolist()
        metadata.set(
            thing_classes=list(classes.names),
            thing_dataset_id_to_contiguous_id=classes.label_of,
            base_classes=[label for label, is_novel in zip(classes.names, novel_mask, strict=True) if not is_novel],
            novel_classes=[label for label, is_novel in zip(classes.names, novel_mask, strict=True) if is_novel],
        )
        return images.records

    DatasetCatalog.register(name, read)
    metadata.set(json_file=str(json_file), image_root=str(image_root), evaluator_type="ov", ov_source=source)
