"""Load weights into a model: safe read -> unwrap -> rename -> strict load, with the difference printed when it fails.

`checkpoint_files.py` reads and writes the files, `checkpoint_layouts.py` knows the layouts; this file compares with the
model. Nothing is resized and nothing is guessed: a tensor that does not fit is an error unless a pattern allows it.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.checkpoint_files import UnsafeCheckpointError, file_sha256, read_checkpoint, save_checkpoint, shorten
from last_vit.checkpoint_layouts import OPENAI_ATTRIBUTES, find_state_dict, fit_names, unwrap_state_dict

__all__ = [
    "OPENAI_ATTRIBUTES",
    "UnsafeCheckpointError",
    "check_finite",
    "file_sha256",
    "find_classifier",
    "fit_names",
    "load_checkpoint",
    "load_strict",
    "read_checkpoint",
    "save_checkpoint",
    "shorten",
    "unwrap_state_dict",
]

_CLASSIFIERS = (
    "heads.head.weight",
    "head.weight",
    "head.fc.weight",
    "head.fc.fc2.weight",  # timm's MetaFormer
    "head.fc2.weight",  # timm's InceptionNeXt
    "head.linear.weight",  # timm's EfficientViT of MSRA
    "head.classifier.4.weight",  # timm's EfficientViT of MIT
    "head.head.l.weight",  # timm's RepViT
    "fc.weight",
    "classifier.weight",
    "last_linear.weight",  # timm's NASNet, SENet and their time
    "classif.weight",  # timm's Inception-ResNet
)
# torchvision's MobileNet, EfficientNet, ConvNeXt, VGG, ...: the last layer of a Sequential is the classifier.
_IN_SEQUENTIAL = re.compile(r"classifier\.(\d+)\.weight")
# What cls_pretrain's ablations add to a host (vit_ablations.py) and the options that do.
_ABLATIONS = {
    "register_tokens": ("register tokens", "model.num_registers"),
    "window_size": ("window attention", "model.window_layers and model.window_size"),
}
_POSITIONS = ("pos_embed", "pos_embedding", "positional_embedding")


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    key: str | None = None,
    allow_pickle: bool = False,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> dict[str, Any]:
    """Load a checkpoint file of any known layout into a model, strictly.

    Args:
        model: Target, changed in place (only on success).
        path: See `read_checkpoint`.
        key: Entry with the weights, for example "student"; see `unwrap_state_dict`.
        allow_pickle: See `read_checkpoint`; runs code from the file.
        allow_missing: See `load_strict`.
        allow_unexpected: See `load_strict`.

    Returns:
        "sha256": first 16 hex digits of the file's hash; "layout": entry that held the weights, or "bare"; "pooling":
        the pooling that the weights were trained with, or None (the release's files do not say); "iteration": training
        iterations done, or None.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable, refused, no state dict in it, or another architecture; the message names the file.
    """
    checkpoint = read_checkpoint(path, allow_pickle)
    try:
        layout, weights = find_state_dict(checkpoint, key)
        load_strict(model, fit_names(weights, model.state_dict()), allow_missing, allow_unexpected)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    pooling, iteration = checkpoint.get("pooling"), checkpoint.get("iteration")
    return {
        "sha256": file_sha256(path)[:16],
        "layout": layout,
        "pooling": pooling if isinstance(pooling, dict) else None,
        "iteration": iteration if isinstance(iteration, int) else None,
    }


def load_strict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> None:
    """Load a state dict whose names and shapes must be the model's.

    Args:
        model: Target; untouched when this raises.
        state_dict: Name -> tensor; values are cast to the model's dtype and device.
        allow_missing: Patterns (fnmatch, on full names) of model tensors that may keep their own values.
        allow_unexpected: Patterns of checkpoint tensors that may be left out. A tensor of another shape is both
            unexpected and missing, so it needs a pattern in both.

    Raises:
        ValueError: Names or shapes differ beyond the patterns, or nothing would be loaded; the message lists both
            sides.
    """
    patterns = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    for argument, value in patterns.items():
        # The characters of "head.*" would each be a pattern, and "*" allows everything.
        if isinstance(value, str):
            raise ValueError(f"{argument} must be a sequence of patterns, got the string {value!r}; write ({value!r},)")
    may_miss, may_exceed = tuple(allow_missing), tuple(allow_unexpected)
    own = model.state_dict()
    reshaped = [name for name in state_dict if name in own and state_dict[name].shape != own[name].shape]
    fitting = [name for name in state_dict if name in own and state_dict[name].shape == own[name].shape]
    bad_shape = [name for name in reshaped if not (_matches(name, may_miss) and _matches(name, may_exceed))]
    missing = [name for name in own if name not in state_dict and not _matches(name, may_miss)]
    unexpected = [name for name in state_dict if name not in own and not _matches(name, may_exceed)]
    if bad_shape or missing or unexpected or not fitting:
        shapes = [f"{name} {list(state_dict[name].shape)} -> {list(own[name].shape)}" for name in bad_shape]
        lines = [
            f"the checkpoint does not fit {type(model).__name__}: {len(fitting)} of its {len(own)} tensors match",
            _listed("missing (the model has them, the checkpoint has not)", missing),
            _listed("unexpected (the checkpoint has them, the model has not)", unexpected),
            _listed("other shape (checkpoint -> model)", shapes),
            *_hints(own, state_dict, missing, unexpected, bad_shape),
            "Differences that are meant are passed as patterns: allow_missing, allow_unexpected.",
        ]
        raise ValueError("\n".join(line for line in lines if line))
    # Allowed gaps keep the model's own values, so that torch's own load is strict in every case.
    model.load_state_dict({**own, **{name: state_dict[name] for name in fitting}}, strict=True)


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity, so that a trainer never writes them over good ones.

    Args:
        state_dict: Name -> tensor; integer tensors pass.

    Raises:
        FloatingPointError: Names the first bad tensor and how many of its values are bad.
    """
    for name, tensor in state_dict.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise FloatingPointError(f"tensor {name!r} has {bad} of {tensor.numel()} values that are NaN or infinite")


def find_classifier(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name of the weight whose rows are the classes.

    Args:
        state_dict: Of a torchvision or timm model, bare or held as `.model`.

    Returns:
        Name of a tensor [C, D] (or [C, D, 1, 1]); None for a backbone, or a classifier of unknown name.
    """
    names = {name.removeprefix("model."): name for name in state_dict}
    known = next((names[short] for short in _CLASSIFIERS if short in names), None)
    if known is not None:
        return known
    # norms among these layers have weights too, of one dimension
    layers = [
        (int(match[1]), name)
        for short, name in names.items()
        if (match := _IN_SEQUENTIAL.fullmatch(short)) and state_dict[name].ndim > 1
    ]
    return max(layers)[1] if layers else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(title: str, names: list[str]) -> str:
    return f"{title}, {len(names)}: {shorten(names)}" if names else ""


def _hints(
    own: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    bad_shape: list[str],
) -> list[str]:
    """The likely reasons, from the differences alone."""
    hints = []
    for name in bad_shape:
        theirs, ours = list(state_dict[name].shape), list(own[name].shape)
        if name == find_classifier(state_dict) and theirs[1:] == ours[1:]:
            head = name.removesuffix("weight") + "*"
            hints.append(
                f"The checkpoint has {theirs[0]} classes, the model {ours[0]}: build the model with "
                f"num_classes={theirs[0]}, or start a new head with allow_missing=({head!r},) and "
                f"allow_unexpected=({head!r},)."
            )
        if name.endswith(_POSITIONS):
            hints.append(f"{name} differs: build the model for the checkpoint's image and patch size.")
    differing = {name.rpartition(".")[2] for name in (*missing, *unexpected, *bad_shape)}
    for name, (meaning, options) in _ABLATIONS.items():
        if name in differing:
            hints.append(
                f"The checkpoint and the model differ in their {meaning}: build the model as it was trained; in "
                f"cls_pretrain's configs with {options}."
            )
    wanted = {"." + name: name for name in missing}
    for name in unexpected:
        match = next((wanted[name[i:]] for i, letter in enumerate(name) if letter == "." and name[i:] in wanted), None)
        if match is not None:
            prefix = name.removesuffix(match)
            hints.append(f"{name!r} is the model's {match!r} behind the unknown prefix {prefix!r}: strip that first.")
            break
    return hints
