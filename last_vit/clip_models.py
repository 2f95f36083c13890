"""CLIP models by architecture name and checkpoint file, loaded strictly and pooled the way they were trained.

    clip = load_clip("ViT-B-16-quickgelu", "ViT-B-16.pt")
    clip.model.encode_image(images), clip.tokenizer(["a photo of a dog"]), clip.preprocessing

Nothing is downloaded. What is known of a file is in clip_checkpoints.py.
"""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_text_pos_embed
from torch import Tensor, nn

from last_vit.checkpoint import load_strict
from last_vit.checkpoint_layouts import fit_names
from last_vit.clip_checkpoints import (
    ClipCheckpoint,
    check_activation,
    check_towers,
    config_uses_quick_gelu,
    read_clip_checkpoint,
)
from last_vit.clip_dense import resize_positions
from last_vit.dense import pooling_of
from last_vit.names import check_name
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import seeded_weights
from last_vit.weights import TrainedModel, attach_trained_pooling

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@dataclass(frozen=True)
class LoadedClip(TrainedModel):
    """A CLIP ready to be measured: `CLIP`, `CustomTextCLIP` or `CoCa` of open_clip."""

    arch: str = ""  # as open_clip knows it
    notes: tuple[str, ...] = ()  # what was changed while loading, in words, such as a resized position embedding

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for the architecture: list of texts -> int64 [B, context length]."""
        return open_clip.get_tokenizer(self.arch)


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
    """Build a CLIP, load its weights strictly, and attach its pooling (see `read_clip_checkpoint` for the default).

    `arch` is as in `resolve_architecture`. It decides between GELU and QuickGELU; only a recorded force_quick_gelu of
    the same architecture is followed. `checkpoint` is a local file in a layout of clip_checkpoints.py; without one,
    weights are drawn with `random_seed`: a control, never a default. `image_size` is the side of the square images in
    pixels, or (height, width), None the architecture's own; the position embedding is resized, and that is noted.
    `precision` is one of `PRECISIONS`, as open_clip has them; the pooling's arguments are `attach_trained_pooling`'s.

    ValueError for an unknown architecture or precision; no weights, or two sorts of them; a file that cannot be read or
    does not fit; an activation that is known to differ.
    """
    if (checkpoint is None) == (random_seed is None):
        raise ValueError(
            f"give {arch} either a checkpoint or a random_seed, for a random model is not measured by accident; got "
            f"{checkpoint!r} and {random_seed!r}"
        )
    arch, found, notes = resolve_architecture(arch), None, ()
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"no checkpoint for {arch} at {str(checkpoint)!r}: it must be a local file (in a model spec, an "
                f"absolute path is open_clip:{arch}//path.pt or open_clip:{arch}@/path.pt), never the name of one to "
                "download"
            )
        found = read_clip_checkpoint(checkpoint)
    forced = bool(found and found.record and found.record["force_quick_gelu"] and found.record["model"] == arch)
    with seeded_weights(random_seed or 0):
        model = create_clip(arch, forced, image_size, device, precision)
    if found is not None:
        check_towers(model, arch, found)
        check_activation(arch, forced or config_uses_quick_gelu(arch), found.path, found.activation)
        notes = load_clip_weights(model, arch, found)
    source = attach_trained_pooling(model, found, pool, top_k, variant)
    return LoadedClip(
        model=model,
        preprocessing=clip_preprocessing(model),
        pooling=pooling_of(model),
        pooling_source=source,
        checkpoint_sha256=None if found is None else found.sha256[:16],
        arch=arch,
        notes=notes,
    )


def load_clip_weights(model: nn.Module, arch: str, checkpoint: ClipCheckpoint) -> tuple[str, ...]:
    """Load a checkpoint strictly into `CLIP`, `CustomTextCLIP` or `CoCa`, in place (only on success).

    Returns what was changed on the way, in words: position embeddings of another grid are resized as open_clip does
    (bicubic, antialiased), those of another context length linearly. ValueError for weights of other towers, or whose
    names or shapes differ; it names the file and `arch`.
    """
    check_towers(model, arch, checkpoint)
    own = model.state_dict()
    weights = convert_state_dict(model, fit_names(checkpoint.weights, own))
    if "positional_embedding" in weights and "text.positional_embedding" in own:
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):
        if name in weights and name in own and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(own[name].shape)
    weights.pop("text.transformer.embeddings.position_ids", None)  # transformers no longer keeps it
    notes = [*_resize_grid(model.visual, weights)]
    text = next((name for name in ("positional_embedding", "text.positional_embedding") if name in own), None)
    if text in weights and weights[text].shape != own[text].shape:
        notes.append(f"text position embedding resized from {len(weights[text])} to {len(own[text])} tokens")
        weights[text] = weights[text].float()
        resize_text_pos_embed(weights, model)
    try:
        load_strict(model, weights)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    return tuple(notes)


def create_clip(
    arch: str,
    quick_gelu: bool = False,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> nn.Module:
    """open_clip's model of an architecture with random weights, in eval mode; arguments as in `load_clip`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are loaded later or were asked for
    try:
        forced = {"force_quick_gelu": quick_gelu, "force_image_size": image_size}
        return open_clip.create_model(arch, device=device, precision=precision, pretrained_text=False, **forced).eval()
    finally:
        logging.disable(disabled)


def clip_preprocessing(model: nn.Module) -> Preprocessing:
    """The evaluation preprocessing that open_clip records in a model."""
    cfg = model.visual.preprocess_cfg
    side = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
    return Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"]), side, side, cfg["interpolation"])


def resolve_architecture(name_or_json: str | Path) -> str:
    """The name by which open_clip knows an architecture.

    Asked for by that, or by the path of an open_clip model configuration (a JSON file), which is registered under its
    stem for the life of the process; ValueError for one that hides another, or that is none.
    """
    if not str(name_or_json).endswith(".json"):
        check_name(str(name_or_json), open_clip.list_models(), "open_clip architecture")
        return str(name_or_json)
    path = Path(name_or_json)
    if not path.is_file():
        raise FileNotFoundError(f"no open_clip model config at {str(path)!r}")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or any(name not in config for name in needed):
        raise ValueError(f"{path} is no open_clip model config: it needs {', '.join(needed)}")
    known = open_clip.get_model_config(path.stem) if path.stem in open_clip.list_models() else None
    if known is None:
        open_clip.add_model_config(path)
    elif known != config:
        raise ValueError(f"{path} would hide another model config called {path.stem!r}; rename the file")
    return path.stem


def split_clip_spec(text: str) -> tuple[str, str]:
    """What stands behind `open_clip:` in a model spec -> architecture or JSON path, and checkpoint file ("" if none).

    Example:
        >>> split_clip_spec("ViT-B-16/weights/last.pt")
        ('ViT-B-16', 'weights/last.pt')
        >>> split_clip_spec("clip/model_configs/mini.json@mini.pt")
        ('clip/model_configs/mini.json', 'mini.pt')
    """
    arch, *file = re.split("[/@]", text, maxsplit=1)
    config = re.fullmatch(r"(.*?\.json)(?:[/@](.*))?", text)
    if config is None or arch in open_clip.list_models():
        return arch, "".join(file)
    return config[1], config[2] or ""


def _resize_grid(tower: nn.Module, weights: dict[str, Tensor]) -> Iterable[str]:
    """Bring the image position embedding to the tower's grid, in place."""
    trunk = getattr(tower, "trunk", None)
    name = "visual.positional_embedding" if trunk is None else "visual.trunk.pos_embed"
    own = getattr(tower, "positional_embedding", None) if trunk is None else getattr(trunk, "pos_embed", None)
    if name not in weights or own is None or weights[name].shape == own.shape:
        return
    if trunk is None:
        num_prefix, new_hw = 1, tower.grid_size
    else:
        num_prefix, new_hw = 0 if trunk.no_embed_class else trunk.num_prefix_tokens, trunk.patch_embed.grid_size
    side = round((weights[name].shape[-2] - num_prefix) ** 0.5)
    if weights[name].ndim != own.ndim or num_prefix + side**2 != weights[name].shape[-2]:
        return  # no square grid: load_strict tells
    weights[name] = resize_positions(weights[name].to(torch.float32), num_prefix, (side, side), new_hw, "open_clip")
    yield f"image position embedding resized from {side} x {side} to {new_hw[0]} x {new_hw[1]} patches"
