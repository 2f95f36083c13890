"""What the label converters share: files in parallel, whole or not there, skipped when done, counted at the end.

A converter makes `Conversion`s (what to read, which file to write) and a function that reads; this runs them. Finished
files are found by their names, so a stopped run goes on where it was; --overwrite does all again.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from seg_id_tables import apply_table
from tqdm import tqdm

from last_vit.atomic_file import atomic_file
from last_vit.command_line import positive
from last_vit.data.image_files import load_mask

Read = Callable[[Any], np.ndarray]  # what to read -> uint8 [H, W]
_installed: list[Read] = []  # of a worker process


class Conversion(NamedTuple):
    """One file to make."""

    source: Any
    target: Path


def add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every converter has."""
    parser.add_argument("--num-workers", type=positive, default=4, help="processes, default 4")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--any-count", action="store_true", help="take a part of the data set, too")


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """--output or --beside, one of them."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--output", type=Path, help="root to write to; the folders below are made")
    group.add_argument("--beside", action="store_true", help="write beside the source files, as mmsegmentation does")


def convert(
    conversions: Sequence[Conversion], read: Read, *, what: str, expected: int, args: argparse.Namespace
) -> None:
    """Make all files and print the counts.

    Args:
        conversions: One per file, no target twice.
        read: Makes the labels; goes to each process once.
        what: Names the set in messages, such as "COCO-Stuff val".
        expected: Official number of files.
        args: With the flags of `add_conversion_flags`.

    Raises:
        ValueError: Another number than expected without --any-count, a target twice, or as `read`.
        OSError: A file that cannot be read or written, or a worker that died.
    """
    official = f" (the official set has {expected})"
    if len(conversions) != expected and not args.any_count:
        raise ValueError(
            f"{what}: found {len(conversions)} files{official}: is a part missing? To convert these: --any-count"
        )
    targets = {conversion.target for conversion in conversions}
    if len(targets) < len(conversions):
        raise ValueError(f"{what}: {len(conversions)} files would be written to {len(targets)} names")
    waiting = [each for each in conversions if args.overwrite or not each.target.is_file()]
    for _ in tqdm(_run(waiting, read, args.num_workers), total=len(waiting), desc=what, unit=" files", disable=None):
        pass
    lacking = [target for target in targets if not target.is_file()]
    if lacking:
        raise OSError(f"{what}: {len(lacking)} files were written but are not there, such as {min(lacking)}")
    print(
        f"{what}: {len(conversions)} files found{official}, {len(targets)} converted: {len(waiting)} now, "
        f"{len(conversions) - len(waiting)} before"
    )


def look_up(path: Path, table: np.ndarray) -> np.ndarray:
    """A map of raw ids -> classes.

    Args:
        path: One-channel 8-bit PNG.
        table: From seg_id_tables.py.

    Returns:
        uint8 [H, W].

    Raises:
        OSError, ValueError: As `load_mask` and `apply_table`; the message names the file.
    """
    values = load_mask(path)
    try:
        return apply_table(values.astype(np.uint8), table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_target(source: Path, target: Path, beside: bool) -> None:
    """Refuse to write below the folder that is read, unless told to.

    Raises:
        ValueError: `target` is `source` or below it without --beside.
    """
    if not beside and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} is the folder of the source files: give another --output, or --beside to mean it")


def write_label(values: np.ndarray, target: Path) -> None:
    """Write a grey PNG of 8 bits; the file is whole or not there.

    Args:
        values: uint8 [H, W].
        target: Its folder is made when missing.
    """
    with atomic_file(target) as file:
        Image.fromarray(values).save(file, format="PNG")


def _run(conversions: Sequence[Conversion], read: Read, num_workers: int) -> Iterator[None]:
    """Convert one after the other or in processes; the first error ends it."""
    num_workers = min(num_workers, len(conversions))
    if num_workers < 2:
        yield from map(partial(_convert_one, read), conversions)
        return
    chunk = min(16, 1 + len(conversions) // (4 * num_workers))
    try:
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _install, (read,)) as executor:
            yield from executor.map(_convert_installed, conversions, chunksize=chunk)
    except BrokenProcessPool as error:
        raise OSError("a worker process died, perhaps for want of memory; try fewer --num-workers") from error


def _install(read: Read) -> None:
    """In a worker process: keep what reads, which may be large, for all of its files."""
    _installed.append(read)


def _convert_installed(conversion: Conversion) -> None:
    _convert_one(_installed[-1], conversion)


def _convert_one(read: Read, conversion: Conversion) -> None:
    write_label(read(conversion.source), conversion.target)
