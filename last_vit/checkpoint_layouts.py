"""Where the weights lie inside a checkpoint, and how their names become those of a model.

Every rule is explicit: a prefix is stripped only when all names carry it, a tower is taken only when the model asks for
one, a name is rewritten only by an anchored pattern of a known source. What no rule covers stays as it is and fails in
`last_vit.checkpoint.load_strict`. No tensor is resized: position embeddings are for the host library to do.

| file                                     | weights under        | rules                                            |
|------------------------------------------|----------------------|--------------------------------------------------|
| this project's and the release's trainer | "model"              | wrapper "model."                                 |
| DINO training checkpoint                 | "teacher", "student" | wrapper "module.", "backbone." only, not "head." |
| open_clip training checkpoint            | "state_dict"         | wrapper "module."                                |
| torchvision, timm, DINO backbone, others | the file itself      | torchvision's old MLP names; timm -> torchvision |
| original EVA-CLIP                        | the file itself      | EVA -> timm, "visual." -> "visual.trunk."        |
| original DINOv2                          | the file itself      | DINOv2 -> timm                                   |
| OpenAI's CLIP (TorchScript archive)      | the modules in it    | three attributes that are no weights left out    |
"""

import argparse
import ast
import io
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# What OpenAI's CLIP files keep among the weights; no model takes them as tensors.
OPENAI_ATTRIBUTES = frozenset({"input_resolution", "context_length", "vocab_size"})
_STATE_KEYS = ("teacher", "model", "state_dict")
# DistributedDataParallel, torch.compile, and modules that hold the host as `.model`.
_WRAPPERS = ("module.", "_orig_mod.", "model.")

_EVA_BLOCK = r"^((?:visual\.)?blocks\.\d+\.)"
_EVA_TO_TIMM = (
    (_EVA_BLOCK + r"mlp\.ffn_ln\.", r"\1mlp.norm."),
    (_EVA_BLOCK + r"attn\.inner_attn_ln\.", r"\1attn.norm."),
    (_EVA_BLOCK + r"mlp\.w1\.", r"\1mlp.fc1_g."),
    (_EVA_BLOCK + r"mlp\.w2\.", r"\1mlp.fc1_x."),
    (_EVA_BLOCK + r"mlp\.w3\.", r"\1mlp.fc2."),
    (_EVA_BLOCK + r"attn\.([qv])_bias$", r"\1attn.\2_proj.bias"),
)
_DINOV2_TO_TIMM = (
    (r"^register_tokens$", "reg_token"),
    (r"^(blocks\.\d+\.mlp\.)w12\.", r"\1fc1."),
    (r"^(blocks\.\d+\.mlp\.)w3\.", r"\1fc2."),
)
# timm's and DINO's ViT have the same names; torchvision packs q, k, v in the same order.
_TIMM_TO_TORCHVISION = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.encoder_layer_\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
)
# torchvision's published ViT files predate its renaming of the MLP.
_OLD_TORCHVISION = (
    (r"^(encoder\.layers\.encoder_layer_\d+\.mlp\.)linear_1\.", r"\g<1>0."),
    (r"^(encoder\.layers\.encoder_layer_\d+\.mlp\.)linear_2\.", r"\g<1>3."),
)


def shorten(names: Iterable[object], limit: int = 8) -> str:
    """The first names of a list and how many more there are, for error messages."""
    names = [str(name) for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def find_state_dict(content: Mapping[str, Any], key: str | None = None) -> tuple[str, dict[str, Tensor]]:
    """Take the state dict out of a file's content and strip the prefixes of what wrapped its model.

    `content` is that of the whole file, `key` the entry that holds the weights, for example "student"; None takes the
    first of "teacher", "model", "state_dict" that is there, else the content itself. Returns the entry, or "bare", and
    name -> tensor, of names "backbone.*" and "head.*" (DINO) only the backbone's, without that prefix. ValueError where
    that is not a filled dict of tensors; it lists what is there.
    """
    if key is None:
        key = next((name for name in _STATE_KEYS if isinstance(content.get(name), Mapping)), None)
    elif key not in content:
        raise ValueError(f"the checkpoint has no entry {key!r}; it holds {shorten(content)}")
    layout = "bare" if key is None else key
    entries = content if key is None else content[key]
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(
            f"no weights: {layout!r} is not a filled dict; the checkpoint holds {shorten(content) or 'nothing'}"
        )
    strangers = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strangers:
        raise ValueError(
            f"no state dict found: not tensors in {layout!r}: {shorten(strangers)}; weights are looked for under "
            f"{', '.join(_STATE_KEYS)}, or in the whole file; name another entry with key=..."
        )
    wrapper = _wrapper_of(entries)
    weights = {name.removeprefix(wrapper): tensor for name, tensor in entries.items()}
    roots = {name.partition(".")[0] for name in weights}
    return layout, _take(weights, "backbone.") if "backbone" in roots and roots <= {"backbone", "head"} else weights


def fit_names(state_dict: Mapping[str, Tensor], model_names: Iterable[str]) -> dict[str, Tensor]:
    """Rewrite the names of a state dict of another origin to those of a model; the model's names say which rules apply.

    Left out: EVA's rotary tables (the model computes its own), DINOv2's mask token, OpenAI's three attributes and, when
    the model is the image tower of a CLIP alone, everything that is not under "visual." or "visual.trunk.".
    ValueError: Two names became one.
    """
    model_names = list(model_names)
    wrapper = _wrapper_of(model_names)
    targets = {name.removeprefix(wrapper) for name in model_names}
    weights = {name: tensor for name, tensor in state_dict.items() if name not in OPENAI_ATTRIBUTES - targets}
    if any(re.search(_EVA_BLOCK + r"(mlp\.w1|attn\.inner_attn_ln)\.", name) for name in weights):
        weights = {name: tensor for name, tensor in weights.items() if "rope" not in name.split(".")}
        weights = _rewrite(weights, _EVA_TO_TIMM)
        if any(name.startswith("visual.trunk.") for name in targets):
            weights = _rewrite(weights, ((r"^visual\.", "visual.trunk."),))
    if "mask_token" in weights.keys() - targets and "blocks.0.norm1.weight" in targets:
        del weights["mask_token"]
        weights = _rewrite(weights, _DINOV2_TO_TIMM)
        if "reg_token" in weights:  # beside registers timm gives CLS no position of its own
            cls_position, weights["pos_embed"] = weights["pos_embed"].tensor_split((1,), dim=1)
            weights["cls_token"] = weights["cls_token"] + cls_position
    if not any(name.startswith("visual.") for name in targets):
        tower = next((p for p in ("visual.trunk.", "visual.") if any(n.startswith(p) for n in weights)), None)
        weights = weights if tower is None else _take(weights, tower)
    if "class_token" in targets:
        rules = _TIMM_TO_TORCHVISION if "blocks.0.attn.qkv.weight" in weights else _OLD_TORCHVISION
        weights = _rewrite(weights, rules)
    return {wrapper + name: tensor for name, tensor in weights.items()}


def _wrapper_of(names: Iterable[str]) -> str:
    """The longest chain of wrapper prefixes that all names start with."""
    names, wrapper = list(names), ""
    while names:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(wrapper + p) for name in names)), None)
        if prefix is None:
            break
        wrapper += prefix
    return wrapper


def _take(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _rewrite(weights: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    rewritten: dict[str, Tensor] = {}
    for old_name, tensor in weights.items():
        name = old_name
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in rewritten:
            raise ValueError(f"two tensors of the checkpoint become {name!r}; one of them is {old_name!r}")
        rewritten[name] = tensor
    return rewritten


# What files hold beside tensors


class _NumpyDtype:
    """Stands in for `numpy.dtype` while unpickling: a type code and byte order, no way into numpy's own state."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = state[1].replace("|", "=") + self.code


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> float | int | bool:
    """Stands in for numpy's scalar constructor: the same number as a plain Python one; objects are refused."""
    return np.frombuffer(data, dtype.code)[0].item()


# What DINO's training checkpoints hold beside tensors. A Namespace only holds attributes. The learning rates in the
# optimizer state are numpy scalars (they come from a schedule array), written as `numpy.core` before numpy 2.
SAFE_GLOBALS = [
    argparse.Namespace,
    (_NumpyDtype, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


# TorchScript archives


def read_torchscript(file: BinaryIO) -> dict[str, Tensor] | None:
    """The loaded module's `state_dict()`, on the CPU, of a TorchScript archive; None for a file of another kind.

    An archive is a zip of torch.save with a program beside it, which `torch.jit.load` would compile. A copy without
    the program is read by torch's own weights-only unpickler, with empty stand-ins for the modules; of the program only
    the lists of parameter and buffer names are read, as text. A pickle.UnpicklingError where it asks for anything but
    tensors, containers and modules; any exception for a damaged file.
    """
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        data = next((name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)), "")
        root = data.partition("/")[0]
        if f"{root}/constants.pkl" not in names:
            return None
        plain = io.BytesIO()
        with zipfile.ZipFile(plain, "w") as copy:
            for name in names:
                if not name.startswith((f"{root}/constants.pkl", f"{root}/code/")):
                    copy.writestr(name, archive.read(name))
        plain.seek(0)
        asked = {arg.replace(" ", ".") for op, arg, _ in pickletools.genops(archive.read(data)) if op.name == "GLOBAL"}
        modules = [
            (type("Module", (_Module,), {"script": name}), name) for name in asked if name.startswith("__torch__.")
        ]
        with torch.serialization.safe_globals([*_SCRIPT_GLOBALS, *modules]):
            module = torch.load(plain, map_location="cpu", weights_only=True)
        return dict(_weights_of(module, archive, root))


class _Module:
    """Stands in for a module of the archive: holds its attributes, does nothing."""

    script = ""  # its class in the archive's program

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def _untagged(value: Any, *_: Any) -> Any:
    """Stands in for torch's `restore_type_tag`, which adds a type that nothing here needs."""
    return value


_SCRIPT_GLOBALS = [
    (_untagged, "torch.jit._pickle.restore_type_tag"),
    *((list, f"torch.jit._pickle.build_{kind}list") for kind in ("int", "double", "bool", "tensor")),
]


def _weights_of(module: _Module, archive: zipfile.ZipFile, root: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a stand-in and of those in it."""
    names = _weight_names(module.script, archive, root)
    for name, value in module.attributes.items():
        if isinstance(value, Tensor) and (names is None or name in names):
            yield name, value
        elif isinstance(value, _Module):
            for inner, tensor in _weights_of(value, archive, root):
                yield f"{name}.{inner}", tensor


def _weight_names(script: str, archive: zipfile.ZipFile, root: str) -> set[str] | None:
    """What a class of the archive's program lists as parameters and buffers; None where it does not say."""
    folder, _, name = script.rpartition(".")
    path = f"{root}/code/{folder.replace('.', '/')}.py"
    if path not in archive.namelist():
        return None
    lists = re.search(
        rf"^class {re.escape(name)}\(Module\):\n  __parameters__ = (\[.*\])\n  __buffers__ = (\[.*\])\n",
        archive.read(path).decode(),
        re.MULTILINE,
    )
    return None if lists is None else {*ast.literal_eval(lists[1]), *ast.literal_eval(lists[2])}


def file_kind(path: Path) -> str:
    """What a file that cannot be read is, and what to do about it."""
    with path.open("rb") as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page that was saved in its place: open the address in a browser and fetch the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, which only names the file: run `git lfs pull` in its repository"
    return "truncated, corrupt or of another kind; fetch or save it again and compare its size with the source's"
