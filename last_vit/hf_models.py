"""Hugging Face models with weights and preprocessing: a folder that `save_pretrained` wrote, or a name on the hub.

Names are downloaded once, into the hub's own cache; folders are read offline. Only configs and safetensors are read,
and nothing that runs code. The class is the one that config.json names or, where that is no host (ViTMAE's pre-training
with its decoder), the bare encoder that `AutoModel` takes from it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from last_vit.adapters.hub_vit import HUB_HOSTS
from last_vit.checkpoint import file_sha256
from last_vit.preprocessing import Preprocessing

_WEIGHTS = "model*.safetensors"
_FILES = ["config.json", "preprocessor_config.json", _WEIGHTS, "model.safetensors.index.json"]
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def build_hf(name: str, pretrained: bool) -> nn.Module:
    """The model in `name`, a folder or `<owner>/<name>` on the hub, in float32 on the CPU; or random weights of it.

    ImportError: No transformers. FileNotFoundError: A folder without safetensors. ValueError: Nothing to download, no
    config.json, an unknown class, weights that do not fit it.
    """
    folder = find_folder(name)
    config, cls, is_saved_class = _described(folder)
    if not pretrained:
        return cls(config).eval()
    if not any(folder.glob(_WEIGHTS)):
        raise FileNotFoundError(
            f"no {_WEIGHTS} in {folder}; reading other formats can run code: let model.save_pretrained write it"
        )
    options = {"config": config, "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        model, report = cls.from_pretrained(folder, dtype=torch.float32, **options)
        if report["missing_keys"] and all(".pooler." in f".{key}" for key in report["missing_keys"]):
            options["add_pooling_layer"] = False  # as DINO's ViTModel was saved
            model, report = cls.from_pretrained(folder, dtype=torch.float32, **options)
    except Exception as error:  # torn files, tensors of another shape
        raise ValueError(f"the weights in {folder} do not load into {cls.__name__}: {error}") from error
    unused = [key for key in report["unexpected_keys"] if is_saved_class and not key.endswith("position_ids")]
    if report["missing_keys"] or unused:
        raise ValueError(
            f"the weights in {folder} are not those of {cls.__name__}: missing {sorted(report['missing_keys'])}, "
            f"not used {sorted(unused)}"
        )
    return model.eval()


def find_folder(name: str) -> Path:
    """The folder `name`, or the hub's copy of the repository `name`, downloaded if it is not there."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # a download fails in many ways, and at length
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name!r} is no folder, and Hugging Face's hub does not give it ({reason}); a model is hf:<folder>, or "
            f"hf:<owner>/<name> where a network is (and a login, for gated ones)"
        ) from error


def weights_sha256(name: str) -> str:
    """Of the safetensors file, or of the digests of its shards in their order."""
    digests = [file_sha256(file) for file in sorted(find_folder(name).glob(_WEIGHTS))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def hf_preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """What preprocessor_config.json says; without one, ImageNet's 256 / 224 at the size of the model's images.

    The shorter side is resized, also where the host squashes. A ValueError for what is no centred square.
    """
    path = find_folder(name) / "preprocessor_config.json"
    if not path.is_file():
        side = _side(path, getattr(model.config, "vision_config", model.config).image_size)
        return Preprocessing(interpolation="bicubic").resized(side)
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no settings in JSON: {error}") from error
    resize = _side(path, found.get("size", 224))
    crop = _side(path, found["crop_size"]) if found.get("do_center_crop") else resize
    if found.get("resample", 2) not in _RESAMPLE:
        raise ValueError(f"{path}: resample must be 2 (bilinear) or 3 (bicubic), got {found['resample']!r}")
    mean, std = (tuple(found.get(key, [0.5] * 3)) for key in ("image_mean", "image_std"))
    return Preprocessing(mean, std, max(resize, crop), crop, _RESAMPLE[found.get("resample", 2)])


def _side(path: Path, size: Any) -> int:
    """One side in pixels from an int, [h, w], {"shortest_edge": s} or {"height": h, "width": w}."""
    sides = {size} if isinstance(size, int) else set(size.values() if isinstance(size, dict) else size)
    if len(sides) != 1:
        raise ValueError(f"{path}: images must become squares, got size {size!r}")
    return sides.pop()


def _described(folder: Path) -> tuple[Any, type[nn.Module], bool]:
    """Config and class of a folder, and whether the weights were saved from that class."""
    try:
        import transformers as hf
    except ImportError as error:
        raise ImportError("a model hf:... needs transformers: pip install transformers") from error
    path = folder / "config.json"
    try:
        config = hf.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"transformers {hf.__version__} cannot read {path}: {error}") from error
    named = next(iter(config.architectures or ()), "AutoModel")
    cls = getattr(hf, named, None)
    if cls is None:
        raise ValueError(f"transformers {hf.__version__} has no class {named!r}, which {path} names")
    if f"{cls.__module__}.{cls.__qualname__}" in HUB_HOSTS:
        return config, cls, True
    with torch.device("meta"):
        return config, type(hf.AutoModel.from_config(config)), False
