"""What the label converters share: files in parallel, whole or not there, skipped when done, counted at the end.

Finished files are found by their names, so a stopped run goes on where it was; --overwrite does all again.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from seg_id_tables import apply_table
from seg_layouts import find_split
from tqdm import tqdm

from last_vit.atomic_file import atomic_file
from last_vit.command_line import cores_at_hand, positive
from last_vit.data.image_files import load_mask

Read = Callable[[Any], np.ndarray]  # what to read -> uint8 [H, W]
_installed: list[Read] = []  # of a worker process


def add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every converter has."""
    most = cores_at_hand()
    parser.add_argument("--num-workers", type=positive, default=most, help=f"processes; default: the cores, {most}")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--any-count", action="store_true", help="take a part of the data set, too")


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """--split, and --output or --beside."""
    parser.add_argument("--split", nargs="+", choices=("train", "val"), default=["val"], help="default val")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--output", type=Path, help="root to write to; the folders below are made")
    group.add_argument("--beside", action="store_true", help="write beside the source files, as mmsegmentation does")


def target_folder(source: Path, below: str, args: argparse.Namespace) -> Path:
    """Where to write what is read from `source`: there with --beside, else `below` in --output, but not there."""
    target = source if args.beside else args.output / below
    if not args.beside and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} is the folder of the source files: give another --output, or --beside to mean it")
    return target


def convert(sources: Mapping[Path, Any], read: Read, dataset: str, split: str, args: argparse.Namespace) -> None:
    """Make all files and print the counts.

    `sources` say per file to make what to read; `read` makes the labels and goes to each process once; `args` have the
    flags of `add_conversion_flags`. ValueError for another number than the official one without --any-count; OSError
    for a file that cannot be read or written, or a worker that died.
    """
    what, official = f"{dataset} {split}", find_split(dataset, split)[1]
    if len(sources) != official and not args.any_count:
        raise ValueError(
            f"{what}: found {len(sources)} files (the official set has {official}): is a part missing? To convert "
            f"these: --any-count"
        )
    waiting = [(source, target) for target, source in sources.items() if args.overwrite or not target.is_file()]
    for _ in tqdm(_run(waiting, read, args.num_workers), total=len(waiting), desc=what, unit=" files", disable=None):
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


def _run(waiting: list[tuple[Any, Path]], read: Read, num_workers: int) -> Iterator[None]:
    """Convert one after the other or in processes; the first error ends it."""
    num_workers = min(num_workers, len(waiting))
    if num_workers < 2:
        yield from map(partial(_convert_one, read), waiting)
        return
    chunk = min(16, 1 + len(waiting) // (4 * num_workers))
    try:
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _install, (read,)) as executor:
            yield from executor.map(_convert_installed, waiting, chunksize=chunk)
    except BrokenProcessPool as error:
        raise OSError("a worker process died, perhaps for want of memory; try fewer --num-workers") from error


def _install(read: Read) -> None:
    """In a worker process: keep what reads, which may be large, for all of its files."""
    _installed.append(read)


def _convert_installed(pair: tuple[Any, Path]) -> None:
    _convert_one(_installed[-1], pair)


def _convert_one(read: Read, pair: tuple[Any, Path]) -> None:
    source, target = pair
    labels = Image.fromarray(read(source))
    with atomic_file(target) as file:
        labels.save(file, format="PNG")
