"""What the label converters share: files in parallel, whole or not there, skipped when done, counted at the end.

Finished files are found by their names, so a stopped run goes on where it was; --overwrite does all again.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from seg_id_tables import apply_table
from seg_layouts import find_split
from torch.utils.data import Dataset

from last_vit.atomic_file import atomic_file
from last_vit.command_line import add_workers_flag
from last_vit.data.image_files import load_mask
from last_vit.evaluation import open_loader


def add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every converter has."""
    add_workers_flag(parser, "--num-workers")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--any-count", action="store_true", help="take a part of the data set, too")


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """--split and --output."""
    parser.add_argument("--split", nargs="+", choices=("train", "val"), default=["val"], help="default val")
    parser.add_argument("--output", type=Path, required=True, help="root to write to, may be --root; makes folders")


class Conversion(Dataset):
    """Files to make, of which an item makes one: (what to read, target), by `read`, to labels uint8 [H, W]."""

    def __init__(self, pairs: list[tuple[Any, Path]], read: Callable[[Any], np.ndarray]) -> None:
        self.pairs, self.read = pairs, read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Path:
        source, target = self.pairs[index]
        labels = Image.fromarray(self.read(source))
        with atomic_file(target) as file:
            labels.save(file, format="PNG")
        return target


def convert(
    sources: Mapping[Path, Any], read: Callable[[Any], np.ndarray], dataset: str, split: str, args: argparse.Namespace
) -> None:
    """Make all files, target -> what to read, in --num-workers processes, and print the counts.

    ValueError for another number than the official one without --any-count, and a file that cannot be read.
    """
    what, official = f"{dataset} {split}", find_split(dataset, split)[1]
    if len(sources) != official and not args.any_count:
        raise ValueError(
            f"{what}: found {len(sources)} files (the official set has {official}): is a part missing? To convert "
            f"these: --any-count"
        )
    waiting = [(source, target) for target, source in sources.items() if args.overwrite or not target.is_file()]
    for _ in open_loader(Conversion(waiting, read), what, batch_size=1, num_workers=args.num_workers, collate=list):
        pass
    print(
        f"{what}: {len(sources)} files found (the official set has {official}), {len(sources)} converted: "
        f"{len(waiting)} now, {len(sources) - len(waiting)} before"
    )


def look_up(path: Path, table: np.ndarray) -> np.ndarray:
    """A one-channel PNG of raw ids -> classes, uint8 [H, W], by a table of seg_id_tables.py; errors name the file."""
    values = load_mask(path)
    try:
        return apply_table(values.astype(np.uint8), table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
