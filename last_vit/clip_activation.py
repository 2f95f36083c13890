"""The activation trap: weights trained with QuickGELU load into a GELU architecture without an error and score wrong.

OpenAI's, MetaCLIP's and DFN's weights need QuickGELU, LAION's and DataComp's GELU, and a state dict does not say which.
In this order, the first that speaks is believed:

1. `last_vit.json` beside the checkpoint, which clip/train_clip.py writes;
2. the three attributes that OpenAI's own files hold among their weights (also when saved as a plain state dict);
3. the file's SHA-256, or its name, where they are those of a file in open_clip's table of published weights;
4. a word in the file's name: openai, metaclip, dfn2b, dfn5b or quickgelu; laion..., datacomp..., commonpool....

Words of both kinds, and every other file, leave it unknown: a renamed file, or a checkpoint trained elsewhere and named
after neither, is loaded as the architecture says.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from last_vit.checkpoint_layouts import OPENAI_ATTRIBUTES
from last_vit.clip_record import ClipRecord

_QUICK_WORDS = ("openai", "metaclip", "dfn2b", "dfn5b")
_GELU_WORDS = ("laion", "datacomp", "commonpool")
# MetaCLIP's and DFN's later files, of which open_clip's table takes some for GELU.
_UNSURE_WORDS = ("altogether", "worldwide", "s39b", "39b")


class Activation(NamedTuple):
    """Whether weights were trained with QuickGELU, and how that is known."""

    quick_gelu: bool
    why: str


def known_activation(
    path: Path, sha256: str, names: Iterable[str], record: ClipRecord | None = None
) -> Activation | None:
    """What a checkpoint was trained with, where that can be told.

    Args:
        path: The file; only its name is read here.
        sha256: Its 64 hex digits.
        names: Of what it holds, before `fit_names`.
        record: As `read_clip_record` gives it.

    Returns:
        The activation; None where nothing tells.
    """
    recorded = None if record is None else _recorded(record)
    if recorded is not None:
        return recorded
    if OPENAI_ATTRIBUTES.issubset(names):
        return Activation(True, "OpenAI's own layout")
    for by in (sha256[:64], sha256[:8], path.name):
        if by in _published():
            return Activation(*_published()[by])
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    if "quickgelu" in words:
        return Activation(True, "quickgelu in the file's name")
    quick = [word for word in words if word.startswith(_QUICK_WORDS)]
    gelu = [word for word in words if word.startswith(_GELU_WORDS)]
    if bool(quick) == bool(gelu) or any(word in _UNSURE_WORDS for word in words):
        return None
    return Activation(bool(quick), f"{(quick or gelu)[0]} in the file's name")


def check_activation(arch: str, uses_quick_gelu: bool, path: Path, known: Activation | None) -> None:
    """Refuse weights of one activation in an architecture of the other.

    Raises:
        ValueError: Names the architecture to use instead.
    """
    if known is None or known.quick_gelu == uses_quick_gelu:
        return
    import open_clip

    theirs, ours = ("QuickGELU", "GELU") if known.quick_gelu else ("GELU", "QuickGELU")
    other = f"{arch}-quickgelu" if known.quick_gelu else arch.removesuffix("-quickgelu")
    if other != arch and other in open_clip.list_models():
        way_out = f"use {other}"
    else:
        way_out = f'use a model config that has "quick_gelu": {json.dumps(known.quick_gelu)}'
    raise ValueError(
        f"{path} holds weights trained with {theirs} ({known.why}), and the architecture {arch} computes {ours}; they "
        f"would load without an error and score wrong: {way_out}"
    )


def config_uses_quick_gelu(arch: str) -> bool:
    """Whether an open_clip architecture computes QuickGELU."""
    import open_clip

    return bool(open_clip.get_model_config(arch).get("quick_gelu", False))


def _recorded(record: ClipRecord) -> Activation | None:
    import open_clip

    why = f"{record.path.name} beside it records {record.model}"
    if record.force_quick_gelu:
        return Activation(True, why + " with force_quick_gelu")
    config = open_clip.get_model_config(record.model) if record.model in open_clip.list_models() else None
    beside = record.path.parent / f"{Path(record.model).name}.json"  # the training's own config
    if config is None and beside.is_file():
        config = json.loads(beside.read_text(encoding="utf-8"))
    return None if config is None else Activation(bool(config.get("quick_gelu", False)), why)


@cache
def _published() -> dict[str, tuple[bool, str]]:
    """SHA-256 (whole or its first 8 digits) or file name -> activation, of the files in open_clip's table.

    OpenAI's names (ViT-B-16.pt) are left out: they say nothing of a file that is not in OpenAI's own layout.
    """
    import open_clip

    found: dict[str, tuple[bool, str]] = {}
    for arch, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(arch, tag)
        folder, _, name = cfg.get("url", "").rpartition("/")
        entry = (bool(cfg.get("quick_gelu", False)), f"{name} of open_clip's table, {arch} {tag}")
        whole, start = re.search(r"[0-9a-f]{64}", folder), re.search(r"-([0-9a-f]{8})\.pth?$", name)
        if name and tag != "openai":
            found.setdefault(name, entry)
        if whole:
            found.setdefault(whole[0], entry)
        if start:
            found.setdefault(start[1], entry)
    return found
