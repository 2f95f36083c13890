"""A detector as its config describes it: vocabulary and model built, and the weights of a checkpoint loaded strictly.

    {"model": {key: tensor}, "detector": {"clip": {"arch", "weights", "dense", "blocks"}, "base_names": [...]}, ...}

"detector" says which frozen CLIP the weights belong to, which they do not hold, and which classes had boxes in
training. Files without it (converted ones) are taken as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from class_embeddings import ClassEmbeddings, embed_class_names, load_class_embeddings
from fvit.fvit_model import FViT
from torch import Tensor

from last_vit.checkpoint import load_strict, read_checkpoint
from last_vit.clip_models import load_clip
from last_vit.clip_text import default_cache
from last_vit.lazy_config import build_model


def read_vocabulary(cfg: Any, names: Sequence[str] | None, device: torch.device) -> ClassEmbeddings:
    """Embeddings of class names: those of the file `vocabulary.path`, or of the text tower of the config's own CLIP.

    The tower runs on `device`, and only where its embeddings of these names are not in the cache (see clip_text.py).
    FileNotFoundError: No such file. ValueError: Names without embedding, or a vocabulary that is none; see
    `load_class_embeddings`.
    """
    if cfg.vocabulary.path:
        return load_class_embeddings(cfg.vocabulary.path, names)
    arch, checkpoint, seed = (cfg.model.clip.get(name) for name in ("arch", "checkpoint", "random_seed"))
    clip = load_clip(arch, checkpoint, random_seed=seed, device=device)
    tower = f"{clip.arch}, weights {clip.checkpoint_sha256 or f'random, seed {seed}'}"
    return embed_class_names(clip.model, clip.tokenizer, names, tower, cfg.vocabulary.prompts, cache=default_cache())


def build_detector(cfg: Any, vocabulary: ClassEmbeddings, is_base: Tensor) -> FViT:
    """The config's model with a vocabulary, which a config cannot hold.

    FileNotFoundError: No CLIP where the config says. ValueError: Arguments that the model refuses, whatever it raises
    for them.
    """
    return build_model({**{name: cfg.model[name] for name in cfg.model}, "vocabulary": vocabulary, "is_base": is_base})


def about_detector(model: FViT) -> dict[str, Any]:
    """What `load_detector` compares, for a checkpoint of this detector's weights."""
    return {"detector": {"clip": model.backbone.clip.source, "base_names": sorted(model.base_names)}}


def load_detector(model: FViT, path: str | Path, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Load a checkpoint of lazy_train.py or convert_fvit_checkpoint.py into a detector; returns the file's content.

    `content` is given where the file has been read already.
    FileNotFoundError: No such file. ValueError: Unreadable, another architecture, or another CLIP; the message names
    the file.
    """
    content = content or read_checkpoint(path)
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
