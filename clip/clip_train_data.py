"""The data of train_clip.py: its own types beside open_clip_train's, and faulty samples skipped and counted in all.

Of our own types order, augmentation and drawn captions are a function of (seed, epoch, position) alone: a continued run
sees what it would have seen. A faulty sample of an indexed set is replaced by the next sound one, so that batches keep
their size (all processes of a contrastive loss need the same); in shards the stream goes on.
"""

import argparse
import dataclasses
import io
import itertools
import logging
import multiprocessing
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import webdataset
from caption_sources import CaptionSource, NoCaptionError, csv_captions, open_source
from clip_train_options import OUR_DATASET_TYPES
from open_clip_train import data as host
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from last_vit.data.image_files import to_rgb
from last_vit.data.loaders import SeededSamples
from last_vit.runtime import all_reduce_sum, is_main_process

REASONS = ("broken image", "no image", "no caption", "broken member", "broken archive")
_NUM_NAMED = 3  # skips per reason that are named in the log, before they are only counted
_MAX_IN_A_ROW = 1000
_IMAGES = {"jpg", "png", "jpeg", "webp"}


class Overlay:
    """A module, or an overlay of one, with some names replaced for the one who is given it."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class SkipCounter:
    """Counts by reason in memory that loading processes share."""

    def __init__(self) -> None:
        self._counts = multiprocessing.Array("q", len(REASONS))

    def add(self, reason: str, what: object) -> None:
        """Count one skip; `what` names it in the log."""
        with self._counts.get_lock():
            self._counts[REASONS.index(reason)] += 1
            count = self._counts[REASONS.index(reason)]
        if count <= _NUM_NAMED:
            more = "; more of them are only counted" if count == _NUM_NAMED else ""
            logging.warning(f"Skipped, {reason}: {what}{more}")

    def take(self) -> list[int]:
        """The counts in the order of `REASONS`, which start at zero again."""
        with self._counts.get_lock():
            counts = list(self._counts)
            self._counts[:] = [0] * len(REASONS)
        return counts


def describe_skips(counts: list[int]) -> str:
    """Counts in words, such as "3 skipped (2 broken image, 1 no caption)"."""
    parts = ", ".join(f"{count} {reason}" for count, reason in zip(counts, REASONS, strict=True) if count)
    return f"{sum(counts)} skipped" + (f" ({parts})" if parts else "")


class CaptionedImages(Dataset):
    """A source as (image [3, H, W], tokens); with `draw` Python's `random` chooses the caption, else the first."""

    def __init__(
        self, source: CaptionSource, transform: Callable, tokenizer: Callable, skips: SkipCounter, draw: bool
    ) -> None:
        self.source, self.transform, self.tokenizer = source, transform, tokenizer
        self.skips, self.draw = skips, draw

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The sample at `index`, or the next that is sound; ValueError where 1,000 in a row, or all, are faulty."""
        number = min(len(self), _MAX_IN_A_ROW)
        for place in range(index, index + number):
            sample = self._read(place % len(self))
            if sample is not None:
                image, captions = sample
                caption = random.choice(captions) if self.draw else captions[0]  # noqa: S311
                return self.transform(image), self.tokenizer([caption])[0]
        raise ValueError(f"{number} samples in a row, from number {index}, are faulty; the log names the first of them")

    def _read(self, index: int) -> tuple[Image.Image, tuple[str, ...]] | None:
        try:
            return self.source.sample(index)
        except NoCaptionError as error:
            self.skips.add("no caption", f"number {index}: {error}")
        except (ValueError, OSError) as error:
            self.skips.add("broken image", f"number {index}: {error}")
        return None


class EpochBatches(Sampler[list[int]]):
    """Positions of one epoch in the training order, in full batches of this process."""

    def __init__(self, num_samples: int, args: argparse.Namespace, shared_epoch: host.SharedEpoch) -> None:
        self.num_samples, self.shared_epoch = num_samples, shared_epoch
        self.batch_size, self.rank, self.world_size = args.batch_size, args.rank, args.world_size

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.shared_epoch.get_value() * self.num_samples + self.rank * self.batch_size
        for first in itertools.islice(itertools.count(start, self.batch_size * self.world_size), len(self)):
            yield list(range(first, first + self.batch_size))


class ReportedLoader:
    """A loader that says after each pass what was skipped; ValueError for a training pass that ends too early.

    `done` batches of an interrupted epoch are passed over; `at_border` is called before every other batch with the
    number of those before it.
    """

    def __init__(self, loader: Any, skips: SkipCounter, is_train: bool) -> None:
        self.loader, self.skips, self.is_train = loader, skips, is_train
        self.num_batches, self.num_samples = loader.num_batches, loader.num_samples
        self.done, self.at_border = 0, lambda number: None

    def __iter__(self) -> Iterator[Any]:
        given = 0
        for batch in self.loader:
            if given >= self.done:
                self.at_border(given)
                yield batch
            given += 1
        counts = self.skips.take()
        if self.is_train:  # validation is the main process's alone
            if given < self.num_batches:
                raise ValueError(
                    f"an epoch had {given} of its {self.num_batches} batches, after {describe_skips(counts)}: check "
                    f"--train-data, and that --train-num-samples is not too large"
                )
            counts = all_reduce_sum(torch.tensor(counts)).tolist()
        if is_main_process():
            level = logging.WARNING if any(counts) else logging.INFO
            logging.log(level, f"{'Training' if self.is_train else 'Validation'} data: {describe_skips(counts)}")


def dataset_function(get_dataset_fn: Callable, image_size: int) -> Callable[[str, str], Callable]:
    """`open_clip_train.data.get_dataset_fn` with our types as well, and skips that are counted in all types."""

    def choose(path: str, dataset_type: str) -> Callable[..., host.DataInfo]:
        def build(
            args: argparse.Namespace, preprocess: Callable, is_train: bool, epoch: int = 0, tokenizer: Any = None
        ) -> host.DataInfo:
            skips = SkipCounter()
            if dataset_type in OUR_DATASET_TYPES:
                source = open_source(args, is_train, image_size)
                dataset = CaptionedImages(source, preprocess, tokenizer, skips, draw=is_train)
                info = _load(args, dataset, is_train, epoch)
            else:
                with patch.multiple(host, **_counting_names(skips)):  # the pipeline keeps them
                    info = get_dataset_fn(path, dataset_type)(
                        args, preprocess, is_train=is_train, epoch=epoch, tokenizer=tokenizer
                    )
            return dataclasses.replace(info, dataloader=ReportedLoader(info.dataloader, skips, is_train))

        return build

    return choose


def _load(args: argparse.Namespace, dataset: CaptionedImages, is_train: bool, epoch: int) -> host.DataInfo:
    options = {"num_workers": args.workers, "pin_memory": torch.cuda.is_available()}
    shared_epoch = host.SharedEpoch(epoch)
    if is_train:
        batches = EpochBatches(len(dataset), args, shared_epoch)
        # a generator of its own: starting the workers draws from it
        generator = torch.Generator().manual_seed(args.seed)
        loader = DataLoader(SeededSamples(dataset, args.seed), batch_sampler=batches, generator=generator, **options)
    else:
        loader = DataLoader(dataset, batch_size=args.batch_size, **options)
    loader.num_samples, loader.num_batches = len(dataset), len(loader)
    return host.DataInfo(loader, shared_epoch=shared_epoch)


def _counting_names(skips: SkipCounter) -> dict[str, Any]:
    """Other values of names that open_clip_train.data looks up while it builds a data set."""

    def on_broken_member(error: Exception) -> bool:
        skips.add("broken member", repr(error))
        return True

    def read_csv(path: str, transform: Callable, img_key: str, caption_key: str, sep: str, tokenizer: Any) -> Dataset:
        return CaptionedImages(csv_captions(path, img_key, caption_key, sep), transform, tokenizer, skips, draw=False)

    def read_shards(shards: Iterable[dict]) -> Iterator[dict]:
        return shard_samples(shards, skips)

    return {
        "CsvDataset": read_csv,
        "log_and_continue": on_broken_member,
        "tarfile_to_samples_nothrow": read_shards,
        "wds": Overlay(webdataset, tarfile_to_samples=lambda **_: read_shards, decode=decode_as_files),
    }


def decode_as_files(_: str, handler: Callable[[Exception], bool]) -> Any:
    """`webdataset.decode` of images, RGB as `load_rgb` reads them from files: its own makes 16-bit grey white."""

    def decode(key: str, data: bytes) -> Image.Image | None:
        return to_rgb(Image.open(io.BytesIO(data))) if key.rpartition(".")[2].lower() in _IMAGES else None

    return webdataset.decode(decode, handler=handler)


def shard_samples(shards: Iterable[dict], skips: SkipCounter) -> Iterator[dict]:
    """Shards -> samples with an image and a caption, as bytes.

    A broken archive (missing, damaged, cut short anywhere, also before the blocks of zeros that end a tar) gives what
    stands before the damage, and is one skip each time that it is read.
    """
    for shard in shards:
        damage: list[Exception] = []
        for sample in host.group_by_keys_nothrow(_members(shard["url"], damage), suffixes={*_IMAGES, "txt"}):
            reason = "no image" if _IMAGES.isdisjoint(name for name, value in sample.items() if value) else "no caption"
            if reason == "no caption" and sample.get("txt", b"").strip():
                yield sample
            elif not damage:  # else it is what the damage left of it
                skips.add(reason, sample["__key__"])
        if damage:
            skips.add("broken archive", f"{shard['url']}: {damage[0]!r}")


class _Header(tarfile.TarInfo):
    """Of a tar that ends in blocks of zeros or is broken; tarfile takes a damaged or missing header for the end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"{error}, the archive is cut short or damaged") from error


def _members(url: str, damage: list[Exception]) -> Iterator[dict]:
    """The files of a tar up to its end, or to the damage, which is appended."""
    try:
        with tarfile.open(fileobj=webdataset.gopen(url), mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                    yield {"fname": member.name, "data": archive.extractfile(member).read(), "__url__": url}
                archive.members = []  # a shard's list of all members would only grow
    except Exception as error:  # whatever an opener, a decompressor or tarfile has to say
        damage.append(error)
