"""The data sets that train_clip.py adds to open_clip_train's, and what it makes of open_clip's own.

Order, augmentation and the caption that is drawn from an image's several are, for our own types, a function of (seed,
epoch, position) alone: a run that is continued sees what it would have seen. open_clip's types keep its own order. In
all types faulty samples are skipped and counted (clip_train_skips.py).
"""

import argparse
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pandas
import torch
from caption_sources import CaptionSource, open_source
from clip_train_options import OUR_DATASET_TYPES
from clip_train_overlay import replaced
from clip_train_skips import CountedShards, NoCaptionError, SkipCounter, first_sound
from open_clip_train import data as host
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from last_vit.data.image_files import load_rgb
from last_vit.data.loaders import SeededSamples

DataFunction = Callable[..., host.DataInfo]


class CaptionedImages(Dataset):
    """A source as a trainer takes it: (image tensor, token tensor).

    Args:
        source: Images and captions.
        transform: RGB image -> tensor [3, H, W].
        tokenizer: Texts -> token tensors.
        skips: Counts faulty samples, each of which is replaced by the next sound one.
        draw: Take one of the captions by Python's `random`; else the first.
    """

    def __init__(
        self, source: CaptionSource, transform: Callable, tokenizer: Callable, skips: SkipCounter, draw: bool
    ) -> None:
        self.source = source
        self.transform = transform
        self.tokenizer = tokenizer
        self.skips = skips
        self.draw = draw

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, captions = first_sound(index, len(self), self.source.sample, self.skips)
        caption = random.choice(captions) if self.draw else captions[0]  # noqa: S311
        return self.transform(image), self.tokenizer([caption])[0]


class CountedCsvDataset(host.CsvDataset):
    """open_clip's CSV data set, which skips and counts rows with a broken image or without caption.

    Rows, and what is drawn from torch's generator for them, are as in open_clip.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file has no such column; the message names those it has.
    """

    def __init__(
        self,
        input_filename: str,
        *args: Any,
        img_key: str,
        caption_key: str,
        sep: str,
        skips: SkipCounter,
        **named: Any,
    ) -> None:
        columns = pandas.read_csv(input_filename, sep=sep, nrows=0).columns.tolist()
        for flag, key in (("--csv-img-key", img_key), ("--csv-caption-key", caption_key)):
            if key not in columns:
                raise ValueError(f"{input_filename} has no column {key!r} ({flag}) but {columns} at {sep!r}")
        super().__init__(input_filename, *args, img_key=img_key, caption_key=caption_key, sep=sep, **named)
        self.skips = skips

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        image, caption = first_sound(idx, len(self), self._read, self.skips)
        return self.transforms(image), self.tokenize([caption])[0]

    def _read(self, index: int) -> tuple[Image.Image, str]:
        caption = self.captions[index]
        if caption != caption or not str(caption).strip():  # pandas has NaN for an empty field
            raise NoCaptionError(str(self.images[index]))
        return load_rgb(str(self.images[index])), str(caption)


class EpochBatches(Sampler[list[int]]):
    """Positions of one epoch in the training order, in full batches of one process.

    Args:
        num_samples: Of the data set.
        args: Of the run: batch_size, rank and world_size.
        shared_epoch: Which epoch it is.
    """

    def __init__(self, num_samples: int, args: argparse.Namespace, shared_epoch: host.SharedEpoch) -> None:
        self.num_samples = num_samples
        self.batch_size, self.rank, self.world_size = args.batch_size, args.rank, args.world_size
        self.shared_epoch = shared_epoch

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.shared_epoch.get_value() * self.num_samples + self.rank * self.batch_size
        for _ in range(len(self)):
            yield list(range(first, first + self.batch_size))
            first += self.batch_size * self.world_size


def dataset_function(
    get_dataset_fn: Callable[[str, str], DataFunction], skips: dict[str, SkipCounter], image_hw: tuple[int, int]
) -> Callable[[str, str], DataFunction]:
    """`open_clip_train.data.get_dataset_fn` with our types as well, and skips that are counted in all types.

    Args:
        get_dataset_fn: The original.
        skips: Counters of "train" and "val".
        image_hw: As in `open_source`.
    """

    def choose(path: str, dataset_type: str) -> DataFunction:
        def build(
            args: argparse.Namespace, preprocess: Callable, is_train: bool, epoch: int = 0, tokenizer: Any = None
        ) -> host.DataInfo:
            counter = skips["train" if is_train else "val"]
            if dataset_type in OUR_DATASET_TYPES:
                source = open_source(args, is_train, image_hw)
                dataset = CaptionedImages(source, preprocess, tokenizer, counter, draw=is_train)
                return _load(args, dataset, is_train, epoch)
            original = get_dataset_fn(path, dataset_type)
            csv = functools.partial(CountedCsvDataset, skips=counter)
            with CountedShards(counter, host).installed(), replaced(host, CsvDataset=csv):
                return original(args, preprocess, is_train=is_train, epoch=epoch, tokenizer=tokenizer)

        return build

    return choose


def _load(args: argparse.Namespace, dataset: CaptionedImages, is_train: bool, epoch: int) -> host.DataInfo:
    """Loader as open_clip_train reads it: with `num_samples` and `num_batches`."""
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
