"""A detector as its config describes it: vocabulary and model built, and the weights of a checkpoint loaded strictly.

    {"model": {key: tensor}, "detector": {"clip": {"arch", "weights", "dense", "blocks"}, "base_names": [...]}, ...}

"detector" says which frozen CLIP the weights belong to, which they do not hold, and which classes had boxes in
training; of a Mask R-CNN which classes it has, and what its backbone was. Files without it (converted ones) are taken
as they are.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from class_embeddings import ClassEmbeddings, embed_class_names, load_class_embeddings
from fvit.fvit_layers import SquareDetector

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


def detector_of(
    cfg: Any, names: Sequence[str] | None, base_names: Collection[str], device: torch.device, has_weights: bool = False
) -> SquareDetector:
    """The config's detector of some classes: with a `vocabulary` F-ViT, without one Mask R-CNN.

    F-ViT scores classes that are none of `base_names` as novel ones; `names` may be None, as in `read_vocabulary`.
    `has_weights` is for one whose weights will be loaded: its backbone need not be trained before.
    FileNotFoundError: No CLIP or backbone where the config says. ValueError: As `read_vocabulary`; arguments that the
    model refuses, whatever it raises for them.
    """
    node = {**cfg.model}
    if "vocabulary" in cfg:
        vocabulary = read_vocabulary(cfg, names, device)
        is_base = torch.tensor([name in base_names for name in vocabulary.names])
        return build_model({**node, "vocabulary": vocabulary, "is_base": is_base}).to(device)
    if has_weights and not cfg.model.frozen:
        node["init"] = None
    return build_model({**node, "names": names}).to(device)


def load_detector(model: SquareDetector, path: str | Path, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Load a checkpoint of lazy_train.py or convert_fvit_checkpoint.py into a detector; returns the file's content.

    `content` is given where the file has been read already.
    FileNotFoundError: No such file. ValueError: Unreadable, or another architecture, CLIP, backbone or classes; the
    message names the file.
    """
    content = content or read_checkpoint(path)
    weights, trained = content.get("model"), content.get("detector", {})
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no detector: expected a checkpoint of lazy_train.py, or a converted one")
    for part, (what, remedy) in model.belongs_to.items():
        trained_on, own = trained.get(part), model.about[part]
        if trained_on is not None and trained_on != own:
            differing = [name for name in own if trained_on.get(name) != own[name]]
            words = "; ".join(f"{name} {trained_on.get(name)!r}, now {own[name]!r}" for name in differing[:4])
            raise ValueError(f"{path} was trained on another {what} ({words}): {remedy}")
    try:
        load_strict(model, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "backbone" in trained:
        model.about["backbone"] = trained["backbone"]
    return content
