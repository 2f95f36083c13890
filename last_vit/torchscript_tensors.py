"""The tensors of a TorchScript archive, without running the program that it is.

An archive is a zip: `data.pkl` describes a tree of modules whose leaves are tensors, `data/<key>` holds their bytes,
and `code/` is the program, which `torch.jit.load` would compile. Here `data.pkl` is read by an unpickler that knows
tensors, lists, dicts and empty stand-ins for modules, and refuses every other name; of `code/` only the lists of
parameter and buffer names are read, as text.
"""

import ast
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}


class RefusedNameError(pickle.UnpicklingError):
    """The archive asks for something that is not plain weights; `args[0]` is its name."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive rather than a zip of `torch.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the loaded module's `state_dict()` has them.

    Args:
        path: A file for which `is_torchscript` is true.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        RefusedNameError: `data.pkl` names anything but tensors, containers and modules.
        Exception: Any, for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)).partition("/")[0]
        if f"{root}/byteorder" in archive.namelist():
            order = archive.read(f"{root}/byteorder").decode()
            if order != sys.byteorder:
                raise ValueError(f"written on a {order}-endian machine, this one is {sys.byteorder}-endian")
        with archive.open(f"{root}/data.pkl") as file:
            module = _Unpickler(file, archive, root).load()
        found: dict[str, Tensor] = {}
        _collect(module, "", archive, root, found)
    return found


class _Module:
    """Stands in for a module of the archive: holds its attributes, does nothing."""

    qualified = ""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Rebuild:
    """Stands in for torch's function: storage, offset, size, stride, ... -> tensor.

    An object without attributes, because a pickle can set those of the functions that it names.
    """

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)  # torch refuses what lies outside of the storage


class _First:
    """Stands in for torch's `restore_type_tag`, which adds a type that nothing here needs."""

    __slots__ = ()

    def __call__(self, value: Any, *_: Any) -> Any:
        return value


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins and tensors only."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Everything that `data.pkl` can name; called by pickle for each name."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type("ScriptModule", (_Module,), {"qualified": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _First()
        raise RefusedNameError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor."""
        _, dtype, key, _, numel = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if self._storages[key].numel() < numel or self._storages[key].dtype != dtype:
            raise ValueError(f"storage {key} is not {numel} values of {dtype}")
        return self._storages[key]


def _collect(module: Any, prefix: str, archive: zipfile.ZipFile, root: str, found: dict[str, Tensor]) -> None:
    """Add the tensors of a stand-in and of those in it."""
    names = _weight_names(module.qualified, archive, root)
    for name, value in module.attributes.items():
        if isinstance(value, Tensor) and (names is None or name in names):
            found[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", archive, root, found)


def _weight_names(qualified: str, archive: zipfile.ZipFile, root: str) -> set[str] | None:
    """What a class of the archive's code lists as parameters and buffers; None where it does not say."""
    folder, _, name = qualified.rpartition(".")
    path = f"{root}/code/{folder.replace('.', '/')}.py"
    if path not in archive.namelist():
        return None
    lists = re.search(
        rf"^class {re.escape(name)}\(Module\):\n  __parameters__ = (\[.*\])\n  __buffers__ = (\[.*\])\n",
        archive.read(path).decode(),
        re.MULTILINE,
    )
    return None if lists is None else {*ast.literal_eval(lists[1]), *ast.literal_eval(lists[2])}
