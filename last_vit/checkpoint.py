"""Checkpoint files: safe reading, atomic writing, and strict loading, with the difference printed when it fails.

Reading runs no code from the file unless the caller says `allow_pickle=True`. Loading resizes nothing and guesses
nothing: a tensor that does not fit is an error unless a pattern allows it. Where the weights lie in a file, and how
their names become those of a model, is in checkpoint_layouts.py.
"""

import errno
import hashlib
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint_layouts import SAFE_GLOBALS, file_kind, find_state_dict, fit_names, read_torchscript, shorten

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_CLASSIFIER = re.compile(
    r"(?:model\.)?(?:heads\.head|head(?:\.fc|\.fc\.fc2|\.fc2|\.linear|\.classifier\.4|\.head\.l)?"
    r"|fc|classifier(?:\.\d+)?|last_linear|classif)\.weight"
)
# What cls_pretrain's ablations add to a host, and the options that do.
_ABLATIONS = {
    "register_tokens": ("register tokens", "model.num_registers"),
    "reg_token": ("register tokens", "model.num_registers"),
    "window_size": ("window attention", "model.window_layers and model.window_size"),
}


class UnsafeCheckpointError(ValueError):
    """The file can only be read by running code that it carries, and the caller did not allow that."""


@dataclass(frozen=True)
class Checkpoint:
    """A file read once: its weights and what is known about them."""

    path: Path
    weights: dict[str, Tensor]  # on the CPU, names without the prefixes of what wrapped the model
    layout: str  # entry that held the weights, or "bare"
    sha256: str  # of the bytes that were read, 64 hex digits
    pooling: dict[str, Any] | None  # that they were trained with, as `pooling_of`; the release's files say none
    pooling_source: str  # who says so, in words
    iteration: int | None  # training iterations done


def read_weights(path: str | Path, key: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint file of any known layout.

    Arguments and errors are those of `read_checkpoint` and, for `key`, of `find_state_dict`; errors name the file.
    """
    content, sha256 = _read(Path(path), allow_pickle, hashed=True)
    try:
        layout, weights = find_state_dict(content, key)
        check_finite(weights)
    except (ValueError, FloatingPointError) as error:
        raise ValueError(f"{path}: {error}") from error
    pooling, iteration = content.get("pooling"), content.get("iteration")
    return Checkpoint(
        path=Path(path),
        weights=weights,
        layout=layout,
        sha256=sha256,
        pooling=pooling if isinstance(pooling, dict) else None,
        pooling_source="recorded in the checkpoint",
        iteration=iteration if isinstance(iteration, int) else None,
    )


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """Load weights of any known layout into a model strictly, in place (only on success).

    FileNotFoundError, ValueError: As `read_weights` and `load_strict`; the message names the file.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_weights(checkpoint)
    try:
        load_strict(model, fit_names(checkpoint.weights, model.state_dict()))
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    return checkpoint


def read_checkpoint(path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Read all that a checkpoint file holds to the CPU, numpy scalars as plain Python numbers.

    The file was written by `torch.save`, or is a `.safetensors` file, or a TorchScript archive (OpenAI's CLIP files;
    the answer is then its bare state dict, read without running the program in it). `allow_pickle` reads by full
    unpickling, or as TorchScript, what cannot be read otherwise. Both can run any code that the file's author put
    there, with your rights: only for files whose source you trust. Without it that is an UnsafeCheckpointError, which
    names what was refused; a file that is truncated, corrupt, of another kind or without a dict is a ValueError.
    """
    return _read(Path(path), allow_pickle, hashed=False)[0]


def save_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either its old content or the whole new one, whatever happens.

    A killed process leaves at most a temporary file, which the next save overwrites: one writer per path. Only tensors,
    containers, strings and plain numbers read back safely.
    OSError: The disk is full, the folder is read-only, ...: same errno, text with path and free bytes. Existing files
    are untouched and the temporary file is gone.
    """
    path = Path(path)
    try:
        with atomic_file(path, sole_writer=True) as file:
            torch.save(dict(checkpoint), file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a failed write into a RuntimeError raised on top of the OSError.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError):
            raise
        free = f"{shutil.disk_usage(path.parent).free} bytes free in {path.parent}" if path.parent.is_dir() else ""
        raise OSError(
            reason.errno,
            f"cannot write checkpoint {path}: {reason.strerror or reason} ({free or 'no such folder'}); the last good "
            "checkpoint is untouched: make room or fix the folder, then resume from it",
        ) from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, 64 lower-case hex digits."""
    with open(path, "rb") as file:
        return _sha256(file)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the .safetensors file that a state dict makes: what to call weights whose file is not known."""
    return hashlib.sha256(safetensors.torch.save({name: each.clone() for name, each in tensors.items()})).hexdigest()


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict whose names and shapes must be the model's; values are cast to its dtype and device.

    ValueError: Names or shapes differ (both sides are listed, with the likely reason); the model is untouched.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    reshaped = [name for name in state_dict if name in own and state_dict[name].shape != own[name].shape]
    if missing or unexpected or reshaped:
        differing = {
            "missing (the model has them, the checkpoint has not)": missing,
            "unexpected (the checkpoint has them, the model has not)": unexpected,
            "other shape (checkpoint -> model)": [
                f"{name} {list(state_dict[name].shape)} -> {list(own[name].shape)}" for name in reshaped
            ],
        }
        matching = len(own) - len(missing) - len(reshaped)
        lines = [
            f"the checkpoint does not fit {type(model).__name__}: {matching} of its {len(own)} tensors match",
            *(f"{title}, {len(names)}: {shorten(names)}" for title, names in differing.items() if names),
            *_hints(own, state_dict, (missing, unexpected, reshaped)),
        ]
        raise ValueError("\n".join(lines))
    model.load_state_dict(state_dict, strict=True)


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Raise a FloatingPointError that names the first tensor with NaN or infinity, if there is one."""
    for name, tensor in state_dict.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise FloatingPointError(f"tensor {name!r} has {bad} of {tensor.numel()} values that are NaN or infinite")


def find_classifier(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name of the weight [C, D] or [C, D, 1, 1] whose rows are the classes of a torchvision or timm model, or None."""
    # of the layers of a Sequential (torchvision's VGG, MobileNet, ...) the last; norms have 1-D weights
    found = [name for name, weight in state_dict.items() if weight.ndim > 1 and _CLASSIFIER.fullmatch(name)]
    return found[-1] if found else None


def _read(path: Path, allow_pickle: bool, hashed: bool) -> tuple[dict[str, Any], str]:
    """Content of a file, and the hash of the same bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint file at {path}: expected one written by torch.save or safetensors; {_describe_folder(path)}"
        )
    with path.open("rb") as file:
        sha256 = _sha256(file) if hashed else ""
        file.seek(0)
        try:
            is_plain = path.suffix == ".safetensors"
            content = safetensors.torch.load(file.read()) if is_plain else _read_torch(file, path, allow_pickle)
        except (MemoryError, ImportError, UnsafeCheckpointError):
            raise
        except Exception as error:  # a damaged file can fail in any way that its bytes suggest to the reader
            # torch seeks before the start of a truncated archive (EINVAL); other system errors tell their own story.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise ValueError(
                f"{path} ({path.stat().st_size} bytes) cannot be read ({type(error).__name__}): it is {file_kind(path)}"
            ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected a dict: save model.state_dict(), not the model itself"
        )
    return dict(content), sha256


def _read_torch(file: BinaryIO, path: Path, allow_pickle: bool) -> Any:
    try:
        weights = read_torchscript(file)
        if weights is not None:
            return weights
        file.seek(0)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=False)
            return content.state_dict() if isinstance(content, torch.jit.ScriptModule) else content
        refused = re.search(r"GLOBAL (\S+) w", str(error))
        if refused is None:
            raise
        raise UnsafeCheckpointError(
            f"{path} was refused: it asks for {refused[1]}, which is not plain weights; unpickling it (an archive: "
            "torch.jit.load) can run any code that the file's author chose. If you trust its source, read it once with "
            "allow_pickle (torch.load: weights_only=False), save its state dict alone and use that"
        ) from error


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _describe_folder(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"its folder {folder} does not exist"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
    return f"the folder {folder} holds {shorten(names) or 'no such file'}"


def _hints(
    own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], differing: Sequence[list[str]]
) -> Iterator[str]:
    """The likely reasons, from the names that are missing, unexpected and of another shape."""
    missing, unexpected, reshaped = differing
    for name in reshaped:
        theirs, ours = state_dict[name].shape, own[name].shape
        if name == find_classifier(state_dict) and theirs[1:] == ours[1:]:
            yield f"The checkpoint has {theirs[0]} classes, the model {ours[0]}: build it with num_classes={theirs[0]}."
        if name.endswith(("pos_embed", "pos_embedding", "positional_embedding")):
            yield f"{name} differs: build the model for the checkpoint's image and patch size."
    for name, (meaning, options) in _ABLATIONS.items():
        if any(other.rpartition(".")[2] == name for other in (*missing, *unexpected, *reshaped)):
            yield (
                f"The checkpoint and the model differ in their {meaning}: build the model as it was trained; in "
                f"cls_pretrain's configs with {options}."
            )
    for name in unexpected:
        match = next((own_name for own_name in missing if name.endswith(f".{own_name}")), None)
        if match is not None:
            prefix = name.removesuffix(match)
            yield f"{name!r} is the model's {match!r} behind the unknown prefix {prefix!r}: strip that first."
            return
