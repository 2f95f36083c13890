"""Faulty samples: skipped, counted over all loading processes, named in the log, and never passed over in silence.

A sample of an indexed data set is replaced by the next sound one, so that batches keep their size (all processes of a
contrastive loss need the same); in shards the stream goes on. When nothing sound is left, that is an error.
"""

import itertools
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from clip_train_overlay import replaced

REASONS = ("broken image", "no image", "no caption", "broken member", "broken archive")
_NUM_NAMED = 3  # skips per reason that are named in the log, before they are only counted
_MAX_IN_A_ROW = 1000
_IMAGES = ("jpg", "png", "jpeg", "webp")
_Sample = TypeVar("_Sample")


class NoCaptionError(ValueError):
    """A sample without a caption."""


class SkipCounter:
    """Counts by reason in memory that forked loading processes share."""

    def __init__(self) -> None:
        self._counts = multiprocessing.Array("q", len(REASONS))

    def add(self, reason: str, what: object) -> None:
        """Count one skip.

        Args:
            reason: One of `REASONS`.
            what: Names the sample, in the log.
        """
        with self._counts.get_lock():
            self._counts[REASONS.index(reason)] += 1
            count = self._counts[REASONS.index(reason)]
        if count <= _NUM_NAMED:
            more = "; more of them are only counted" if count == _NUM_NAMED else ""
            logging.warning(f"Skipped a sample, {reason}: {what}{more}")

    def take(self) -> list[int]:
        """The counts in the order of `REASONS`, which start at zero again."""
        with self._counts.get_lock():
            counts = list(self._counts)
            self._counts[:] = [0] * len(REASONS)
        return counts


def describe_skips(counts: Iterable[int]) -> str:
    """Counts in words, such as "3 skipped samples (2 broken image, 1 no caption)"."""
    counts = list(counts)
    parts = ", ".join(f"{count} {reason}" for count, reason in zip(counts, REASONS, strict=True) if count)
    return f"{sum(counts)} skipped samples" + (f" ({parts})" if parts else "")


def first_sound(index: int, length: int, read: Callable[[int], _Sample], skips: SkipCounter) -> _Sample:
    """The sample at `index`, or else at the next index whose sample can be read.

    Args:
        index: In [0, length).
        length: Of the data set, whose end is followed by its beginning.
        read: Raises ValueError or OSError for a faulty sample.
        skips: Counts them.

    Raises:
        ValueError: The whole data set, or 1,000 samples in a row, are faulty.
    """
    for step in range(min(length, _MAX_IN_A_ROW)):
        place = (index + step) % length
        try:
            return read(place)
        except NoCaptionError as error:
            skips.add("no caption", f"number {place}: {error}")
        except (ValueError, OSError) as error:
            skips.add("broken image", f"number {place}: {error}")
    raise ValueError(
        f"{min(length, _MAX_IN_A_ROW)} samples in a row, from number {index}, are faulty and nothing is left to train "
        f"on; the log names the first of them"
    )


class CountedShards:
    """Stand-ins for what open_clip_train.data looks up by name in its WebDataset pipeline.

    Args:
        skips: Counts what they leave out.
        host: The module open_clip_train.data.
    """

    def __init__(self, skips: SkipCounter, host: Any) -> None:
        self._skips = skips
        self._host = host

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put them into the module while it builds a pipeline, which keeps them."""
        names = {
            "filter_no_caption_or_no_image": self.has_pair,
            "log_and_continue": self.on_broken_member,
            "tarfile_to_samples_nothrow": self.samples,
        }
        with replaced(self._host, **names):
            yield

    def samples(self, shards: Iterable[dict]) -> Iterator[dict]:
        """Shards -> samples, each with the bytes of its image and caption; other members are not read further.

        From webdataset 0.2.90 on an empty entry marks the end of a shard, which open_clip 3.3 does not know.
        """
        streams = self._host.url_opener(shards, handler=self.on_broken_archive)
        files = self._host.tar_file_expander(streams, handler=self.on_broken_archive)
        for is_file, group in itertools.groupby(files, key=bool):
            if is_file:
                yield from self._host.group_by_keys_nothrow(group, suffixes={*_IMAGES, "txt"})

    def has_pair(self, sample: dict[str, bytes]) -> bool:
        """Whether a sample has an image and a caption; its other members are dropped, lest a broken one stop it."""
        for name in [name for name in sample if not name.startswith("__") and name not in (*_IMAGES, "txt")]:
            del sample[name]
        if not any(sample.get(name) for name in _IMAGES):
            self._skips.add("no image", sample.get("__key__"))
            return False
        if not sample.get("txt", b"").strip():
            self._skips.add("no caption", sample.get("__key__"))
            return False
        return True

    def on_broken_member(self, error: Exception) -> bool:
        """Handler of webdataset: count, and go on with the next sample."""
        self._skips.add("broken member", repr(error))
        return True

    def on_broken_archive(self, error: Exception) -> bool:
        """Handler of webdataset: count, and go on with the next shard."""
        self._skips.add("broken archive", repr(error))
        return True
