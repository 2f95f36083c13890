"""A trained model ready to be measured: built from its spec, weights loaded, pooled the way it was trained.

The evaluation scripts share this, so that one checkpoint is read in one way everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from last_vit.checkpoint import find_classifier, load_checkpoint, read_checkpoint, unwrap_state_dict
from last_vit.clip_models import load_clip, split_clip_spec
from last_vit.dense import pooling_of
from last_vit.model_spec import build_model, is_config, preprocessing_of, trained_image_size
from last_vit.pooling import LaStPool
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import seeded_weights
from last_vit.trained_pooling import attach_trained_pooling


@dataclass(frozen=True)
class TrainedModel:
    """What `load_trained_model` returns.

    Attributes:
        model: In eval mode on the CPU, with its pooling attached.
        preprocessing: The images it takes.
        pooling: As `last_vit.dense.pooling_of` reports it.
        pooling_source: In words, why it is pooled so.
        checkpoint_sha256: First 16 hex digits; None for random weights.
        num_classes: Size of the classifier in the weights; None when they hold none.
    """

    model: nn.Module
    preprocessing: Preprocessing
    pooling: dict[str, Any]
    pooling_source: str
    checkpoint_sha256: str | None
    num_classes: int | None

    def selection(self, top_k: int | float | None = None, variant: str | None = None) -> LaStPool:
        """LaSt's selection for votes and for the token "last": as the model was trained, K = 1 if without LaSt.

        Args:
            top_k: In place of the model's own K.
            variant: In place of the model's own; "release" for a model that is not pooled with LaSt.

        Raises:
            ValueError: As `LaStPool`.
        """
        return LaStPool(
            top_k if top_k is not None else self.pooling.get("top_k") or 1,
            sigma=self.pooling.get("sigma"),
            variant=variant or self.pooling.get("variant") or "release",
        )


def load_trained_model(
    spec: str,
    checkpoint: str | Path | None,
    *,
    opts: Sequence[str] = (),
    image_size: int | None = None,
    resize: int | None = None,
    pool: str | None = None,
    top_k: int | float | None = None,
    variant: str | None = None,
    random_seed: int | None = None,
) -> TrainedModel:
    """Build a model, load its weights strictly, and attach its pooling.

    Without `pool`: what the checkpoint records under "pooling"; else what a config's model sets; else, for files in the
    released trainer's layout, LaSt with K = 1 as released; else the host's own read-out (CLS for a plain ViT).

    Args:
        spec: As in `last_vit.model_spec.build_model`.
        checkpoint: Weights in any layout that checkpoint.py reads; None only for `open_clip:<arch>/<file>` and for
            random weights.
        opts: As in `build_model`.
        image_size: As in `build_model` and `preprocessing_of`.
        resize: As in `preprocessing_of`.
        pool: One of `POOLS`, in place of the default.
        top_k: For pool "last", in place of the recorded one; 1 when nothing is recorded.
        variant: For pool "last", in place of the recorded one; "release" when nothing is recorded.
        random_seed: Keep the host's random initial weights, drawn with this seed: a control, never a default.

    Returns:
        The model and what is known about it.

    Raises:
        ValueError: Bad spec, weights that do not fit, no weights at all, `top_k` or `variant` without pool "last".
        FileNotFoundError: No such file.
    """
    is_clip = spec.startswith("open_clip:")
    arch, file_of_spec = split_clip_spec(spec.removeprefix("open_clip:")) if is_clip else ("", "")
    if checkpoint is None and not file_of_spec and random_seed is None:
        raise ValueError(
            f"no weights for {spec!r}: give a checkpoint, or ask for random weights as a control (random_seed, or "
            f"{spec}@random on a command line); a random model is not measured by accident"
        )
    sources = {"file in the spec": file_of_spec, "checkpoint": checkpoint, "random_seed": random_seed}
    given = {name: value for name, value in sources.items() if value not in (None, "")}
    if len(given) > 1:
        raise ValueError(f"several sets of weights for {spec!r}, of which only one can be loaded: {given}")
    if is_clip:
        clip = load_clip(
            arch,
            checkpoint or file_of_spec or None,
            pool=pool,
            top_k=top_k,
            variant=variant,
            random_seed=random_seed,
            image_size=image_size,
        )
        preprocessing = preprocessing_of(spec, clip.model, image_size, resize)
        return TrainedModel(
            clip.model, preprocessing, clip.pooling, clip.pooling_source, clip.checkpoint_sha256, num_classes=None
        )
    num_classes, metadata = None, {"sha256": None, "layout": "bare", "pooling": None, "iteration": None}
    if random_seed is not None:
        with seeded_weights(random_seed):
            model = build_model(spec, image_size=image_size, opts=opts)
    else:
        weights = unwrap_state_dict(read_checkpoint(checkpoint))
        num_classes = _num_classes(weights)
        fixed = num_classes is None and spec.startswith("timm:")  # a bare backbone
        asked = None if is_config(spec) else 0 if fixed else num_classes
        model = build_model(spec, asked, trained_image_size(spec, weights) or image_size, opts)
        metadata = load_checkpoint(model, checkpoint)
    source = attach_trained_pooling(model, metadata, pool, top_k, variant, from_config=is_config(spec))
    return TrainedModel(
        model=model,
        preprocessing=preprocessing_of(spec, model, image_size, resize, opts),
        pooling=pooling_of(model),
        pooling_source=source,
        checkpoint_sha256=metadata["sha256"],
        num_classes=num_classes,
    )


def _num_classes(state_dict: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier in a state dict; None when it has none."""
    name = find_classifier(state_dict)
    return None if name is None else state_dict[name].shape[0]
