"""Training steps of clip/: open_clip_train's loop under this project's watch over the loss. For benches only."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from bench_tracks import load_track
from bench_train_steps import Numerics, Side
from open_clip_loop import NO_SCALER, NO_SCHEDULER, NO_TEACHER, Repeated, loop_arguments
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from torch import nn

from last_vit.dense import attach_pool

CLIP_TOP_K = 0.5  # of clip/recipes


def clip_side(arch: str, pooling: str, batch: int, numerics: Numerics) -> Side:
    """Steps on one batch again and again, of an open_clip model from seed 0; AdamW as open_clip sets it up.

    Args:
        arch: open_clip's name.
        pooling: "last", or "cls" for the tower as open_clip makes it.
        batch: Pairs per step.
        numerics: In bfloat16 as --precision amp_bf16.
    """
    _, skips, epochs = load_track("clip", "clip_train_overlay", "clip_train_skips", "clip_train_epoch")
    device = numerics.device
    torch.manual_seed(0)
    with _quiet():
        model = open_clip.create_model(arch, device=device, output_dict=True)
    if pooling != "cls":
        attach_pool(model, pooling, CLIP_TOP_K)
    optimizer = torch.optim.AdamW(_clip_groups(model), lr=1e-6, betas=(0.9, 0.98), eps=1e-6)
    trained = torch.compile(model) if numerics.compiled else model
    config = open_clip.get_model_config(arch)
    text, size = config["text_cfg"], config["vision_cfg"]["image_size"]
    images = torch.randn(batch, 3, size, size, device=device)
    texts = torch.randint(1, text["vocab_size"] - 1, (batch, text.get("context_length", 77)), device=device)
    args = loop_arguments(device, "amp_bf16" if numerics.bf16 else "fp32", batch)
    train, loss = epochs.guard_epoch(train_one_epoch, skips.SkipCounter()), open_clip.ClipLoss()

    def run(steps: int) -> None:
        data = {"train": DataInfo(Repeated((images, texts), steps))}
        with _quiet():
            train(trained, data, loss, 0, optimizer, NO_SCALER, NO_SCHEDULER, NO_TEACHER, args)

    return run


def _clip_groups(model: nn.Module) -> list[dict[str, Any]]:
    """open_clip_train's two groups: norms, biases and the scale are not decayed."""
    named = dict(model.named_parameters())
    free = {name for name, p in named.items() if p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias"))}
    return [
        {"params": [p for name, p in named.items() if name in free], "weight_decay": 0.0},
        {"params": [p for name, p in named.items() if name not in free], "weight_decay": 0.05},
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip speaks of random weights and of every epoch."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
