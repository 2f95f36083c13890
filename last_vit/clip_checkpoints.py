"""CLIP checkpoint files, and what is known of them: pooling, activation, towers.

Files are OpenAI's (archive, or state dict saved plainly), open_clip's, EVA-CLIP's, or `.safetensors` of these; the
layouts are in checkpoint_layouts.py. Both towers must be there.

The activation trap: OpenAI's, MetaCLIP's and DFN's weights need QuickGELU, LAION's and DataComp's GELU; into the other
they load without an error and score wrong, and a state dict does not say which. The first of these that speaks is
believed: `last_vit.json` beside the file, which clip/train_clip.py writes; the three attributes that OpenAI's files
hold among their weights; the file's SHA-256 or name, where open_clip's table of published weights has it; a word in its
name (openai, metaclip, dfn2b, dfn5b or quickgelu; laion..., datacomp..., commonpool...). Words of both kinds, and every
other file, leave it unknown: it is loaded as the architecture says.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from torch import Tensor, nn

from last_vit.checkpoint import Checkpoint, read_weights
from last_vit.checkpoint_layouts import OPENAI_ATTRIBUTES
from last_vit.names import POOLS
from last_vit.weights import WEIGHTS

RECORD_FILE = "last_vit.json"
_QUICK_WORDS = ("openai", "metaclip", "dfn2b", "dfn5b")
_GELU_WORDS = ("laion", "datacomp", "commonpool")
# MetaCLIP's and DFN's later files, of which open_clip's table takes some for GELU.
_UNSURE_WORDS = {"altogether", "worldwide", "s39b", "39b"}


class Activation(NamedTuple):
    """Whether weights were trained with QuickGELU, and how that is known."""

    quick_gelu: bool
    why: str


@dataclass(frozen=True)
class ClipCheckpoint(Checkpoint):
    """A read file of a CLIP."""

    record: dict[str, Any] | None  # `last_vit.json` of its folder
    activation: Activation | None  # what it was trained with; None where nothing tells


def read_clip_checkpoint(path: str | Path) -> ClipCheckpoint:
    """Read a file in one of the layouts above, and what is known about it; raises as `read_weights`.

    Its pooling is what it records itself, or `last_vit.json` beside it (a ValueError when that cannot be read); of the
    released file, known by its name, LaSt with K = 1.
    """
    read, record = read_weights(path), read_clip_record(path)
    known = {**vars(read), "iteration": None}
    if read.pooling is None and record is not None:
        pooling = {"sigma": None, **{name: record[name] for name in ("pool", "top_k", "variant")}}
        known |= {"pooling": pooling, "pooling_source": f"recorded in {RECORD_FILE} beside the checkpoint"}
    elif read.pooling is None and read.path.name == WEIGHTS["vitb16_clip_last"].file:
        source = f"LaSt-ViT's release, known by the file's name {read.path.name}"
        source += "; its K is not published, 1 is that of the release's code"
        known |= {"pooling": {**WEIGHTS["vitb16_clip_last"].pooling, "top_k": 1}, "pooling_source": source}
    activation = known_activation(read.path, read.sha256, read.weights, record)
    return ClipCheckpoint(**known, record=record, activation=activation)


def read_clip_record(checkpoint: str | Path) -> dict[str, Any] | None:
    """What `last_vit.json` in a checkpoint's folder says of all of them; None where there is none.

    "model": open_clip architecture of the training; "pool": one of `POOLS`, or "host" for the tower's own read-out;
    "top_k" and "variant" of LaSt, None for another pool; "force_quick_gelu": whether the architecture was trained with
    QuickGELU although its configuration says GELU. ValueError where it cannot be read, or holds something else.
    """
    path = Path(checkpoint).parent / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        record = {"top_k": None, "variant": None, "force_quick_gelu": False, **content}
        record["pool"] = record["pool"] or "host"
        has_pool = record["pool"] in ("host", *POOLS)
        has_top_k = record["pool"] != "last" or type(record["top_k"]) in (int, float)
        if not (isinstance(record["model"], str) and has_pool and has_top_k):
            raise ValueError(
                f"needs a model name, a pool of host, {', '.join(POOLS)}, a top_k for last; holds {content}"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a CLIP training ({error!r}); restore or remove it") from error
    return record


def known_activation(
    path: Path, sha256: str, names: Iterable[str], record: Mapping[str, Any] | None = None
) -> Activation | None:
    """What a checkpoint was trained with, where its record, names of weights, hash or file name tell."""
    if record is not None and (recorded := _recorded_activation(path.parent, record)):
        return recorded
    if OPENAI_ATTRIBUTES.issubset(names):
        return Activation(True, "OpenAI's own layout")
    for by in (sha256[:64], sha256[:8], path.name):
        if by in _published_activations():
            return _published_activations()[by]
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    if "quickgelu" in words:
        return Activation(True, "quickgelu in the file's name")
    quick = [word for word in words if word.startswith(_QUICK_WORDS)]
    gelu = [word for word in words if word.startswith(_GELU_WORDS)]
    if bool(quick) == bool(gelu) or _UNSURE_WORDS.intersection(words):
        return None
    return Activation(bool(quick), f"{(quick or gelu)[0]} in the file's name")


def check_activation(arch: str, uses_quick_gelu: bool, path: Path, known: Activation | None) -> None:
    """Refuse weights of one activation in an architecture of the other (ValueError, naming the one to use)."""
    if known is None or known.quick_gelu == uses_quick_gelu:
        return
    theirs, ours = ("QuickGELU", "GELU") if known.quick_gelu else ("GELU", "QuickGELU")
    other = f"{arch}-quickgelu" if known.quick_gelu else arch.removesuffix("-quickgelu")
    way_out = f'use a model config that has "quick_gelu": {json.dumps(known.quick_gelu)}'
    if other != arch and other in open_clip.list_models():
        way_out = f"use {other}"
    raise ValueError(
        f"{path} holds weights trained with {theirs} ({known.why}), and the architecture {arch} computes {ours}; they "
        f"would load without an error and score wrong: {way_out}"
    )


def config_uses_quick_gelu(arch: str) -> bool:
    """Whether an open_clip architecture computes QuickGELU."""
    return bool(open_clip.get_model_config(arch).get("quick_gelu", False))


def check_towers(model: nn.Module, arch: str, checkpoint: ClipCheckpoint) -> None:
    """Refuse a checkpoint of other towers than the model's (ValueError, describing both and what fits the file)."""
    theirs, ours = describe_clip(checkpoint.weights), describe_clip(model.state_dict())
    if not _differ(theirs, ours):
        return
    missing = [tower for tower in ("image tower", "text tower") if theirs[tower] == "none"]
    if missing:
        hint = f"The file has no {' and no '.join(missing)} in open_clip's names"
        hint += "; perhaps it is an image tower alone" if len(missing) == 2 else ""
    else:
        hint = f"Architectures of open_clip like the file: {', '.join(fitting_architectures(theirs)) or 'none'}"
    described = [", ".join(f"{name} {value}" for name, value in each.items()) for each in (theirs, ours)]
    raise ValueError(
        f"{checkpoint.path} does not fit {arch}, which takes a whole checkpoint, image and text tower. The file has "
        f"{described[0]}; {arch} has {described[1]}. {hint}"
    )


def describe_clip(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Kind and sizes of both towers, under readable names; what cannot be told is left out.

    `state_dict` is that of a whole CLIP in open_clip's names, also before EVA's are rewritten. For example {"image
    tower": "ViT", "image width": 768, "image blocks": 12, "patch": 16, "embedding": 512, "text tower": "transformer",
    "text width": 512, "text blocks": 12, "vocabulary": 49408}.
    """

    def size(axis: int, *names: str) -> int | None:
        return next((state_dict[name].shape[axis] for name in names if name in state_dict), None)

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in state_dict)

    def depth(prefix: str) -> int:
        return len({match[1] for name in state_dict if (match := re.match(rf"{prefix}(\d+)\.", name))})

    trunk = "visual.trunk." if "visual.trunk.patch_embed.proj.weight" in state_dict else "visual."
    is_native = "visual.class_embedding" in state_dict
    patches = "visual.conv1.weight" if is_native else f"{trunk}patch_embed.proj.weight"
    blocks = r"visual\.transformer\.resblocks\." if is_native else rf"{re.escape(trunk)}blocks\."
    if patches in state_dict:
        is_eva = has(blocks + r"\d+\.(attn\.(q_proj|q_bias|norm|inner_attn_ln)|mlp\.w1)")
        tower = "ViT" if is_native else "EVA" if is_eva else "timm ViT"
    else:
        tower = "ResNet" if has(r"visual\.layer1\.") else "of another kind" if has(r"visual\.") else "none"
    text = "text." if has(r"text\.") else ""
    is_transformer = f"{text}token_embedding.weight" in state_dict
    heads = (f"{trunk}head.weight", "visual.head.proj.weight", "visual.head.mlp.fc2.weight")
    found = {
        "image tower": tower,
        "image width": size(0, patches),
        "patch": size(2, patches),
        "image blocks": depth(blocks),
        "embedding": size(1, "visual.proj") or size(0, *heads),
        "text tower": "transformer" if is_transformer else "of another kind" if text else "none",
        "text width": size(1, f"{text}token_embedding.weight"),
        "text blocks": depth(rf"{re.escape(text)}transformer\.resblocks\.") if is_transformer else None,
        "vocabulary": size(0, f"{text}token_embedding.weight"),
    }
    return {name: value for name, value in found.items() if value}


def fitting_architectures(description: Mapping[str, Any]) -> list[str]:
    """open_clip's architectures with the described sizes, as far as their configurations tell."""
    described = {arch: _describe_config(open_clip.get_model_config(arch)) for arch in open_clip.list_models()}
    return [
        arch
        for arch, theirs in described.items()
        if {"image tower", "embedding"} <= description.keys() & theirs.keys() and not _differ(description, theirs)
    ]


def _describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """As `describe_clip`, from a model configuration; a timm tower's width and depth are not in it."""
    image, text = config["vision_cfg"], config["text_cfg"]
    name = image.get("timm_model_name")
    found = {"embedding": config["embed_dim"]}
    if name is None and isinstance(image.get("layers", 12), int):
        found |= {"image tower": "ViT", "patch": image.get("patch_size", 16)}
        found |= {"image width": image.get("width", 768), "image blocks": image.get("layers", 12)}
    elif name is not None and (patch := re.search(r"patch(\d+)", name)):
        found |= {"image tower": "EVA" if "eva" in name else "timm ViT", "patch": int(patch[1])}
    if "hf_model_name" not in text:
        found |= {"text width": text.get("width", 512), "text blocks": text.get("layers", 12)}
    return found


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return any(first[name] != second[name] for name in first.keys() & second.keys())


def _recorded_activation(folder: Path, record: Mapping[str, Any]) -> Activation | None:
    why = f"{RECORD_FILE} beside it records {record['model']}"
    if record["force_quick_gelu"]:
        return Activation(True, why + " with force_quick_gelu")
    if record["model"] in open_clip.list_models():
        return Activation(config_uses_quick_gelu(record["model"]), why)
    beside = folder / f"{Path(record['model']).name}.json"  # the training's own config
    if not beside.is_file():
        return None
    return Activation(bool(json.loads(beside.read_text(encoding="utf-8-sig")).get("quick_gelu", False)), why)


@cache
def _published_activations() -> dict[str, Activation]:
    """SHA-256 (whole or its first 8 digits) or file name -> activation, of the files in open_clip's table.

    OpenAI's names (ViT-B-16.pt) are left out: they say nothing of a file that is not in OpenAI's own layout.
    """
    found: dict[str, Activation] = {}
    for arch, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(arch, tag)
        folder, _, name = cfg.get("url", "").rpartition("/")
        known = Activation(bool(cfg.get("quick_gelu", False)), f"{name} of open_clip's table, {arch} {tag}")
        start = re.search(r"-([0-9a-f]{8})\.pth?$", name)
        keys = [re.search(r"[0-9a-f]{64}|$", folder)[0], start[1] if start else "", name if tag != "openai" else ""]
        for key in filter(None, keys):
            found.setdefault(key, known)
    return found
