"""CLIP models by architecture name and checkpoint file, loaded strictly and pooled the way they were trained.

    clip = load_clip("ViT-B-16-quickgelu", "ViT-B-16.pt")
    clip.model.encode_image(images), clip.tokenizer(["a photo of a dog"]), clip.preprocessing

Nothing is downloaded. open_clip is imported only when a function here is called.
"""

import difflib
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from last_vit.clip_activation import Activation, check_activation, config_uses_quick_gelu, known_activation
from last_vit.clip_checkpoints import ClipCheckpoint, check_towers, load_clip_weights, read_clip_checkpoint
from last_vit.clip_record import RECORD_FILE, ClipRecord, read_clip_record
from last_vit.clip_towers import describe_clip, fitting_architectures
from last_vit.dense import pooling_of
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import seeded_weights
from last_vit.trained_pooling import attach_trained_pooling

__all__ = [
    "RECORD_FILE",
    "Activation",
    "ClipCheckpoint",
    "ClipRecord",
    "LoadedClip",
    "build_clip",
    "check_activation",
    "check_towers",
    "clip_preprocessing",
    "config_uses_quick_gelu",
    "describe_clip",
    "fitting_architectures",
    "known_activation",
    "load_clip",
    "load_clip_weights",
    "read_clip_checkpoint",
    "read_clip_record",
    "resolve_architecture",
    "split_clip_spec",
]

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@dataclass(frozen=True)
class LoadedClip:
    """What `load_clip` returns.

    Attributes:
        model: open_clip `CLIP`, `CustomTextCLIP` or `CoCa`, in eval mode, with its pooling attached.
        arch: Architecture as open_clip knows it.
        preprocessing: The images it takes.
        pooling: As `last_vit.dense.pooling_of` reports it.
        pooling_source: In words, why it is pooled so.
        checkpoint_sha256: First 16 hex digits; None for random weights.
        notes: What was changed while loading, in words, such as a resized position embedding.
    """

    model: nn.Module
    arch: str
    preprocessing: Preprocessing
    pooling: dict[str, Any]
    pooling_source: str
    checkpoint_sha256: str | None
    notes: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for the architecture: list of texts -> int64 [B, context length]."""
        import open_clip

        return open_clip.get_tokenizer(self.arch)


def resolve_architecture(name_or_json: str | Path) -> str:
    """The name by which open_clip knows an architecture.

    Args:
        name_or_json: A name of `open_clip.list_models()`, or the path of an open_clip model configuration (a JSON
            file), which is registered under its stem for the life of the process.

    Returns:
        The name.

    Raises:
        FileNotFoundError: No such JSON file.
        ValueError: No such name (with the closest ones); a JSON file that is no model configuration, or that hides
            another one of the same name.
    """
    import open_clip

    text = str(name_or_json)
    if text.endswith(".json"):
        return _register(Path(text))
    known = open_clip.list_models()
    if text not in known:
        close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
        hint = f"close ones: {', '.join(close)}" if close else f"there are {len(known)}, for example {known[0]}"
        raise ValueError(f"unknown open_clip architecture {text!r}; {hint}; a model config is given by its .json path")
    return text


def split_clip_spec(text: str) -> tuple[str, str]:
    """What stands behind `open_clip:` in a model spec -> architecture or JSON path, and checkpoint file ("" if none).

    Example:
        >>> split_clip_spec("ViT-B-16/weights/last.pt")
        ('ViT-B-16', 'weights/last.pt')
        >>> split_clip_spec("clip/model_configs/mini.json@mini.pt")
        ('clip/model_configs/mini.json', 'mini.pt')
    """
    import open_clip

    arch, *file = re.split("[/@]", text, maxsplit=1)
    config = re.fullmatch(r"(.*?\.json)(?:[/@](.*))?", text)
    if config is None or arch in open_clip.list_models():
        return arch, "".join(file)
    return config[1], config[2] or ""


def load_clip(
    arch: str | Path,
    checkpoint: str | Path | None,
    *,
    pool: str | None = None,
    top_k: int | float | None = None,
    variant: str | None = None,
    random_seed: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> LoadedClip:
    """Build a CLIP, load its weights strictly, and attach its pooling.

    Without `pool`: what `last_vit.json` beside the checkpoint records (see record.py), or the checkpoint itself;
    for LaSt-ViT's released file, known by its name, LaSt with K = 1; else the tower's own read-out.

    Args:
        arch: As in `resolve_architecture`. It decides between GELU and QuickGELU; only a recorded force_quick_gelu of
            the same architecture is followed.
        checkpoint: A file in a layout of checkpoints.py, never a name of one to download; None only for random
            weights.
        pool: One of `POOLS`, in place of the default.
        top_k: For pool "last", in place of the recorded one; 1 when nothing is recorded.
        variant: For pool "last", in place of the recorded one; "release" when nothing is recorded.
        random_seed: Keep random initial weights, drawn with this seed: a control, never a default.
        image_size: Side of the square images in pixels, or (height, width); None is the architecture's own. The
            position embedding is resized, and that is noted.
        device: Where the model goes.
        precision: One of `PRECISIONS`, as open_clip has them.

    Returns:
        The model and what is known about it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown architecture or precision; no weights, or two sorts of them; a file that cannot be read or
            does not fit (the message describes both sides); weights trained with QuickGELU for a GELU architecture or
            the reverse, as far as that can be known (see activation.py); `top_k` or `variant` without pool "last".
    """
    if (checkpoint is None) == (random_seed is None):
        raise ValueError(
            f"give {arch} either a checkpoint or a random_seed, for a random model is not measured by accident; got "
            f"{checkpoint!r} and {random_seed!r}"
        )
    with seeded_weights(random_seed or 0):
        model, arch, found, notes = build_clip(arch, checkpoint, image_size, device, precision)
    metadata = {
        "pooling": None if found is None else found.pooling,
        "pooling_source": "" if found is None else found.pooling_source,
        "layout": "bare",
        "iteration": None,
    }
    source = attach_trained_pooling(model, metadata, pool, top_k, variant)
    return LoadedClip(
        model=model,
        arch=arch,
        preprocessing=clip_preprocessing(model),
        pooling=pooling_of(model),
        pooling_source=source,
        checkpoint_sha256=None if found is None else found.sha256[:16],
        notes=notes,
    )


def build_clip(
    arch: str | Path,
    checkpoint: str | Path | None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> tuple[nn.Module, str, ClipCheckpoint | None, tuple[str, ...]]:
    """`load_clip` without pooling.

    Args:
        arch: As in `load_clip`.
        checkpoint: As in `load_clip`; without one the weights are random.
        image_size: As in `load_clip`.
        device: As in `load_clip`.
        precision: As in `load_clip`.

    Returns:
        The model in eval mode, its architecture, what was read (None for random weights), and notes on the loading.

    Raises:
        FileNotFoundError, ValueError: As `load_clip`.
    """
    arch = resolve_architecture(arch)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if checkpoint is None:
        return _create(arch, False, image_size, device, precision), arch, None, ()
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"no checkpoint for {arch} at {str(checkpoint)!r}: it must be a local file (in a model spec, an absolute "
            f"path is open_clip:{arch}//path.pt or open_clip:{arch}@/path.pt), never the name of one to download"
        )
    found = read_clip_checkpoint(checkpoint)
    record = found.record
    forced = record is not None and record.force_quick_gelu and record.model == arch
    model = _create(arch, forced, image_size, device, precision)
    check_towers(model, arch, found)
    check_activation(arch, forced or config_uses_quick_gelu(arch), found.path, found.activation)
    return model, arch, found, load_clip_weights(model, arch, found)


def clip_preprocessing(model: nn.Module) -> Preprocessing:
    """The evaluation preprocessing that open_clip records in a model."""
    cfg = model.visual.preprocess_cfg
    side = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
    return Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"]), side, side, cfg["interpolation"])


def _create(
    arch: str, quick_gelu: bool, image_size: int | tuple[int, int] | None, device: str | torch.device, precision: str
) -> nn.Module:
    import open_clip

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are loaded later or were asked for
    try:
        return open_clip.create_model(
            arch,
            device=device,
            precision=precision,
            force_quick_gelu=quick_gelu,
            force_image_size=image_size,
            pretrained_text=False,
        ).eval()
    finally:
        logging.disable(disabled)


def _register(path: Path) -> str:
    import open_clip

    if not path.is_file():
        raise FileNotFoundError(f"no open_clip model config at {str(path)!r}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or any(name not in config for name in needed):
        raise ValueError(f"{path} is no open_clip model config: it needs {', '.join(needed)}")
    known = open_clip.get_model_config(path.stem) if path.stem in open_clip.list_models() else None
    if known is not None and known != config:
        raise ValueError(f"{path} would hide another model config called {path.stem!r}; rename the file")
    if known is None:
        open_clip.add_model_config(path)
    return path.stem
