"""Files that are whole or not there: written under another name, flushed to the disk, renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path, sole_writer: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an exception, and else is gone.

    The folder is made when missing; an older file stays until the new one is whole. With `sole_writer` nobody else
    writes this path now: the temporary file is `.<name>.tmp`, so that what a killed process leaves of a large file is
    overwritten by the next. Otherwise its name is new every time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = "" if sole_writer else f".{secrets.token_hex(8)}"
    temporary = path.with_name(f".{path.name}{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # others cannot open a folder; the rename itself is to survive a power cut
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
