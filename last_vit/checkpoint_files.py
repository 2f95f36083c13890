"""Checkpoint files on disk: safe reading, atomic writing, hashes.

Reading runs no code from the file unless the caller says `allow_pickle=True`; writing never leaves half a file under
the final name. This file does not know what the weights are (`checkpoint_layouts.py`) or which model takes them
(`checkpoint.py`).
"""

import argparse
import contextlib
import errno
import hashlib
import os
import pickle
import re
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from last_vit.torchscript_tensors import RefusedNameError, is_torchscript, read_torchscript_tensors

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_NUMBER_FORMATS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u1": "B",
    "b1": "?",
}  # fmt: skip


class UnsafeCheckpointError(ValueError):
    """The file can only be read by running code that it carries, and the caller did not allow that."""


class _NumpyDtype:
    """Stands in for `numpy.dtype` while unpickling: keeps the type code, gives the file no way into numpy."""

    def __init__(self, code: str, *_: object) -> None:
        self.format = "=" + _NUMBER_FORMATS[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        self.format = ("=" if byte_order == "|" else byte_order) + self.format[1:]


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> float | int | bool:
    """Stand in for numpy's scalar constructor: the same number as a plain Python one."""
    return struct.unpack(dtype.format, data)[0]


# What DINO's training checkpoints hold beside tensors. A Namespace only holds attributes. The learning rates in the
# optimizer state are numpy scalars (they come from a schedule array), written as `numpy.core` before numpy 2.
_SAFE_GLOBALS = [
    argparse.Namespace,
    (_NumpyDtype, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def read_checkpoint(path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Args:
        path: A file written by `torch.save`, a `.safetensors` file, or a TorchScript archive (OpenAI's CLIP files; the
            answer is then its bare state dict, read without running the program in it).
        allow_pickle: Read by full unpickling, or as TorchScript, what cannot be read otherwise. Both can run any code
            that the file's author put there, with your rights: only for files whose source you trust.

    Returns:
        What the file holds, tensors on the CPU, numpy scalars as plain Python numbers.

    Raises:
        FileNotFoundError: No such file; the message says what was expected.
        UnsafeCheckpointError: (a ValueError) The file needs `allow_pickle=True`; the message names what was refused.
        ValueError: The file is truncated, corrupt, of another kind, or does not hold a dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint file at {path}: expected one written by torch.save or safetensors; {_describe_folder(path)}"
        )
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        elif is_torchscript(path):
            content = _read_torchscript(path, allow_pickle)
        else:
            content = _read_torch(path, allow_pickle)
    except (MemoryError, ImportError, UnsafeCheckpointError):
        raise
    except Exception as error:  # a damaged file can fail in any way that its bytes suggest to the reader
        # torch seeks before the start of a truncated archive (EINVAL); other system errors tell their own story.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint ({type(error).__name__}): it is "
            "truncated, corrupt or of another kind; fetch or save it again and compare its size with the source's"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected a dict: save model.state_dict(), not the model itself"
        )
    return dict(content)


def save_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either its old content or the whole new one, whatever happens.

    The content goes to a temporary file in the same folder (`.<name>.tmp`: one writer per path), is flushed to the disk
    and renamed. A killed process leaves at most that temporary file, which the next save overwrites.

    Args:
        path: The final file; its folder must exist.
        checkpoint: Anything `torch.save` takes; only tensors, containers, strings and plain numbers read back safely.

    Raises:
        OSError: The disk is full, the folder is missing or read-only, ...: same errno, text with path and free bytes.
            Existing files are untouched and the temporary file is gone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's zip writer turns a failed write into a RuntimeError raised on top of the OSError.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError):
            raise
        raise OSError(
            reason.errno,
            f"cannot write checkpoint {path}: {reason.strerror or reason} ({_free_bytes(path.parent)} bytes free in "
            f"{path.parent}); the last good checkpoint is untouched: make room or fix the folder, then resume from it",
        ) from error
    _sync_folder(path.parent)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file.

    Args:
        path: Any file.

    Returns:
        64 lower-case hex digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shorten(names: Iterable[object], limit: int = 8) -> str:
    """The first names of a list and how many more there are, for error messages."""
    names = [str(name) for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path, allow_pickle: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        refused = re.search(r"GLOBAL (\S+) w", str(error))
        if refused is None:
            raise
        raise UnsafeCheckpointError(
            f"{path} was refused: it asks for {refused.group(1)}, which is not plain weights; unpickling it can run "
            "any code that the file's author chose. If you trust its source, read it once with allow_pickle=True, save "
            "its state dict alone and use that"
        ) from error


def _read_torchscript(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    try:
        return read_torchscript_tensors(path)
    except RefusedNameError as error:
        if allow_pickle:
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        raise UnsafeCheckpointError(
            f"{path} was refused: it is a TorchScript archive that asks for {error.args[0]}, which is not plain "
            "weights, so that only torch.jit.load can read it, which compiles and can run the program in it. If you "
            "trust its source, read it once with allow_pickle=True, save its state dict alone and use that"
        ) from error


def _describe_folder(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"its folder {folder} does not exist"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
    return f"the folder {folder} holds {shorten(names) or 'no such file'}"


def _free_bytes(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "unknown"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; only POSIX systems can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
