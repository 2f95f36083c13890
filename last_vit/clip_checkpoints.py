"""CLIP checkpoint files: read safely, fitted to open_clip's names and to a model's patch grid, loaded strictly.

| file                                      | layout                                                                  |
|-------------------------------------------|-------------------------------------------------------------------------|
| OpenAI's `ViT-B-16.pt`                    | TorchScript archive, or its state dict saved plainly; three attributes  |
| open_clip's training, LaSt-ViT's release  | dict with state_dict (epoch, optimizer, ...), or a bare state dict      |
| MetaCLIP, LAION, DataComp                 | open_clip's                                                             |
| EVA-CLIP's original `.pt`                 | bare state dict with EVA's names                                        |
| `.safetensors` of any of them             | bare state dict                                                         |

"module." in front of all names, and logit_scale as [1] or [], make no difference. Both towers must be there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from last_vit.checkpoint import file_sha256, load_strict, read_checkpoint
from last_vit.checkpoint_layouts import find_state_dict, fit_names
from last_vit.clip_activation import Activation, known_activation
from last_vit.clip_positions import resize_positions
from last_vit.clip_record import ClipRecord, read_clip_record, recorded_pooling
from last_vit.clip_towers import describe_clip, differing, fitting_architectures, in_words


@dataclass(frozen=True)
class ClipCheckpoint:
    """A read file.

    Attributes:
        path: The file.
        weights: Name -> tensor, as the file has them, without wrapper prefixes.
        sha256: 64 hex digits of the file's hash.
        record: `last_vit.json` of its folder, or None.
        activation: What it was trained with, or None where nothing tells.
        pooling: What it was trained to be pooled with, in the form of `pooling_of`, or None.
        pooling_source: Who says so, in words.
    """

    path: Path
    weights: dict[str, Tensor]
    sha256: str
    record: ClipRecord | None
    activation: Activation | None
    pooling: dict[str, Any] | None
    pooling_source: str


def read_clip_checkpoint(path: str | Path) -> ClipCheckpoint:
    """Read a checkpoint file of a CLIP, and what is known about it.

    Args:
        path: A file in one of the layouts above.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable or refused (see `read_checkpoint`), no state dict in it, a `last_vit.json` beside it that
            cannot be read.
    """
    path = Path(path)
    content = read_checkpoint(path)
    try:
        weights = find_state_dict(content)[1]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    sha256, record = file_sha256(path), read_clip_record(path)
    if isinstance(content.get("pooling"), dict):
        pooling, source = content["pooling"], "recorded in the checkpoint"
    else:
        pooling, source = recorded_pooling(path, record)
    activation = known_activation(path, sha256, weights, record)
    return ClipCheckpoint(path, weights, sha256, record, activation, pooling, source)


def check_towers(model: nn.Module, arch: str, checkpoint: ClipCheckpoint) -> None:
    """Refuse a checkpoint of another kind or size of towers than the model's.

    Raises:
        ValueError: Describes both, and names the architectures that fit the file.
    """
    theirs, ours = describe_clip(checkpoint.weights), describe_clip(model.state_dict())
    if not differing(theirs, ours):
        return
    missing = [tower for tower in ("image tower", "text tower") if theirs[tower] == "none"]
    if missing:
        hint = f"The file has no {' and no '.join(missing)} in open_clip's names"
        hint += "; perhaps it is an image tower alone" if len(missing) == 2 else ""
    else:
        hint = f"Architectures of open_clip like the file: {', '.join(fitting_architectures(theirs)) or 'none'}"
    raise ValueError(
        f"{checkpoint.path} does not fit {arch}, which takes a whole checkpoint, image and text tower. The file has "
        f"{in_words(theirs)}; {arch} has {in_words(ours)}. {hint}"
    )


def load_clip_weights(model: nn.Module, arch: str, checkpoint: ClipCheckpoint) -> tuple[str, ...]:
    """Load a checkpoint strictly into an open_clip model of its kind.

    Args:
        model: `CLIP`, `CustomTextCLIP` or `CoCa`, changed in place (only on success).
        arch: Its architecture, for messages.
        checkpoint: As `read_clip_checkpoint` gives it.

    Returns:
        What was changed on the way, in words: position embeddings of another grid are resized as open_clip does
        (bicubic, antialiased), those of another context length linearly.

    Raises:
        ValueError: Weights of other towers, or whose names or shapes differ; the message names the file.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_text_pos_embed

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
