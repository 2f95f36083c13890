"""What would fail, or quietly do something else, in hours: found before a run writes its first file.

open_clip 3.3 builds what --model says and only warns when a tag's weights were trained with the other activation
(OpenAI's and MetaCLIP's need QuickGELU); here that is an error, for tags, and for files as far as can be told
(last_vit/clip_models.py).
"""

import argparse
import logging
import math
from pathlib import Path
from typing import NamedTuple

import open_clip
from clip_train_overlay import logging_restored
from open_clip_train.distributed import is_using_distributed, world_info_from_env
from torch import nn

from last_vit.clip_models import (
    Activation,
    ClipCheckpoint,
    check_activation,
    check_towers,
    config_uses_quick_gelu,
    read_clip_checkpoint,
)
from last_vit.dense import attach_pool
from last_vit.pooling import resolve_top_k


class ModelFacts(NamedTuple):
    """What the run's arithmetic and its data need to know of a model."""

    image_hw: tuple[int, int]  # pixels
    num_patches: int | None  # None for a ConvNet
    num_image_parameters: int
    num_parameters: int


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that exclude each other, or LaSt.

    Raises:
        ValueError: Names the flag and what to do.
    """
    if args.torchscript or args.trace:
        flag = "--torchscript" if args.torchscript else "--trace"
        raise ValueError(f"{flag} cannot hold LaSt, whose FFT and choice of patches are Python; use --torchcompile")
    if args.pooling != "last" and (args.top_k is not None or args.variant is not None):
        raise ValueError(f"--top-k and --variant belong to --pooling last, got --pooling {args.pooling}")
    if args.dataset_type != "class-folder" and (args.class_names or args.caption_template):
        raise ValueError(
            f"--class-names and --caption-template belong to --dataset-type class-folder, got {args.dataset_type}"
        )
    if args.resume == "latest" and args.name is None:
        raise ValueError("--resume latest looks in the folder of a run, so it needs that run's --name")


def check_model(args: argparse.Namespace, pretrained: ClipCheckpoint | None) -> ModelFacts:
    """Build the model without memory and attach the pool to it.

    Args:
        args: Of the run.
        pretrained: The file it begins with.

    Raises:
        ValueError: A tower that the pool does not fit, more patches asked for than there are, a file of other towers,
            or a text tower that cannot be locked so.
    """
    size = args.force_image_size
    with logging_restored():
        logging.disable()  # open_clip would speak of random weights
        model = open_clip.create_model(
            args.model,
            device="meta",
            load_weights=False,
            force_image_size=size[0] if size is not None and len(size) == 1 else size,
            force_patch_dropout=args.force_patch_dropout,
            force_context_length=args.force_context_length,
            force_custom_text=args.force_custom_text,
        )
    try:
        attach_pool(model, args.pooling, args.top_k, variant=args.variant or "release")
    except ValueError as error:
        raise ValueError(f"--model {args.model} with --pooling {args.pooling}: {error}") from error
    if args.lock_text and not args.lock_text_freeze_layer_norm and isinstance(model, open_clip.CLIP):
        raise ValueError(
            f"open_clip locks the text tower of {args.model} with its norms only: add --lock-text-freeze-layer-norm"
        )
    if pretrained is not None:
        check_towers(model, args.model, pretrained)
    num_patches = _num_patches(model.visual)
    if args.pooling == "last" and num_patches is not None:
        drop = getattr(getattr(model.visual, "patch_dropout", None), "prob", 0.0)
        resolve_top_k(args.top_k, max(1, int(num_patches * (1 - drop))))
    height, width = (
        (model.visual.image_size,) * 2 if isinstance(model.visual.image_size, int) else model.visual.image_size
    )
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.visual, model)]
    return ModelFacts((height, width), num_patches, *counts)


def read_pretrained(arch: str, pretrained: str, force_quick_gelu: bool) -> ClipCheckpoint | None:
    """Read the file that --pretrained names, and refuse weights that were trained with another activation.

    Args:
        arch: As open_clip knows it.
        pretrained: A tag of open_clip's table, a file, or "" for none.
        force_quick_gelu: Whether QuickGELU is forced on the architecture.

    Returns:
        The file; None for a tag.

    Raises:
        ValueError: No such tag and no such file; a file that cannot be read; or the activations differ.
    """
    if not pretrained or ":" in arch:
        return None
    tag, file = open_clip.get_pretrained_cfg(arch, pretrained), None
    if tag:
        known = Activation(bool(tag.get("quick_gelu", False)), "open_clip's table of weights")
    elif Path(pretrained).is_file():
        file = read_clip_checkpoint(pretrained)
        known = file.activation
    else:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise ValueError(
            f"--pretrained {pretrained!r} is neither a file nor weights that open_clip has for {arch} "
            f"({', '.join(tags) or 'it has none'})"
        )
    try:
        check_activation(arch, force_quick_gelu or config_uses_quick_gelu(arch), Path(pretrained), known)
    except ValueError as error:
        raise ValueError(f"{error}; leave out --force-quick-gelu" if force_quick_gelu else str(error)) from error
    return file


def check_imagenet(path: str) -> None:
    """Refuse what open_clip's zero-shot evaluation would score wrongly: its class numbers are ImageNet's 1000.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: Other than 1000 class folders.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"--imagenet-val {path!r} is no folder; it must hold ImageNet's 1000 class folders")
    num_classes = sum(entry.is_dir() for entry in folder.iterdir())
    if num_classes != 1000:
        raise ValueError(
            f"--imagenet-val {path!r} holds {num_classes} class folders, and open_clip's zero-shot evaluation knows "
            f"the 1000 of ImageNet only, numbered in the order of their names (n01440764, ...); for other folders run "
            f"clip/eval_zero_shot_cls.py on the checkpoints"
        )


def world_of(args: argparse.Namespace) -> tuple[int, int]:
    """(rank, number of processes) that the launcher's variables say, before open_clip reads them."""
    if not (args.horovod or is_using_distributed()):
        return 0, 1
    _, rank, world_size = world_info_from_env()
    return rank, world_size


def _num_patches(tower: nn.Module) -> int | None:
    if hasattr(tower, "grid_size"):
        return math.prod(tower.grid_size)
    return getattr(getattr(tower.trunk, "patch_embed", None), "num_patches", None)
