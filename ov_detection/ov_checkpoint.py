"""What a detector's checkpoint says of its weights, and loading it strictly.

    {"model": {key: tensor}, "detector": {"clip": {"arch", "weights", "dense", "blocks"}, "base_names": [...]}, ...}

"detector" says which frozen CLIP the weights belong to, which they do not hold, and which classes had boxes in
training. Files without it (converted ones) are taken as they are. `last_vit.train_lib` writes and resumes them.
"""

from pathlib import Path
from typing import Any

from fvit.fvit_model import FViT

from last_vit.checkpoint import load_strict, read_checkpoint


def about_detector(model: FViT) -> dict[str, Any]:
    """What `load_detector` compares, for a checkpoint of this detector's weights."""
    return {"detector": {"clip": model.backbone.clip.source, "base_names": sorted(model.base_names)}}


def load_detector(model: FViT, path: str | Path) -> dict[str, Any]:
    """Load the weights of a checkpoint into a detector.

    Args:
        model: Whose frozen CLIP must be the one that the weights were trained on.
        path: Of this file's layout, or of ov_detection/convert_fvit_checkpoint.py's.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable, another architecture, or another CLIP; the message names the file.
    """
    content = read_checkpoint(path)
    weights = content.get("model")
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no detector: expected a checkpoint of lazy_train.py, or a converted one")
    trained_on, own = content.get("detector", {}).get("clip"), model.backbone.clip.source
    if trained_on is not None and trained_on != own:
        differing = [name for name in own if trained_on.get(name) != own[name]]
        words = "; ".join(f"{name} {trained_on.get(name)!r}, now {own[name]!r}" for name in differing)
        raise ValueError(f"{path} was trained on another frozen CLIP ({words}): set model.clip to its own")
    try:
        load_strict(model, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content
