"""A detector's training or evaluation from a config: its parts are built and checked, resumed, and driven."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from class_embeddings import ClassEmbeddings, ClassSplit, embed_class_names, load_class_embeddings
from detectron2.config import instantiate
from fvit.fvit_model import FViT
from ov_checkpoint import about_detector, load_detector
from ov_data import check_same_classes
from ov_evaluation import evaluate, write_evaluation
from ov_trainer import OvTrainer

from last_vit.clip_models import load_clip
from last_vit.lazy_config import build_model, launch_run, run_iterations, set_up_run
from last_vit.runtime import get_logger, world_size
from last_vit.train_lib import RunCheckpoints, average_gradients


def run(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in all processes."""
    launch_run(args, train_or_evaluate)


def train_or_evaluate(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in this process.

    Raises:
        ValueError: Data, embeddings, model, checkpoint and config that do not belong together.
        FloatingPointError: A loss, gradient norm or weight is not finite.
    """
    cfg, device = set_up_run(args, "in ov_detection/configs/")
    if args.eval_only:
        evaluate_checkpoint(cfg, device, args.row)
    else:
        _train(cfg, device, args.resume, args.row)


def _train(cfg: Any, device: torch.device, resume: bool, row: str | None) -> None:
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    classes = train_loader.dataset.dataset.classes
    check_same_classes(classes, test_loader.dataset.dataset.classes)
    torch.manual_seed(cfg.train.seed)
    model = build_detector(cfg, read_vocabulary(cfg, classes.names), classes.split).to(device)
    cfg.optimizer.params.model = model
    options = {name: cfg.train[name] for name in ("seed", "bf16", "clip_grad_norm")}
    trainer = OvTrainer(average_gradients(model), train_loader, instantiate(cfg.optimizer), **options)
    _scale_lr(trainer.optimizer, cfg.dataloader.train.batch_size * world_size(), cfg.train.lr_batch_size)
    load = partial(load_detector, model)
    checkpoints = RunCheckpoints(trainer, cfg.train.output_dir, about_detector(model), load)
    now = partial(evaluate, model, test_loader, device, cfg.evaluation.kinds, cfg.train.bf16)
    result, last_checkpoint = run_iterations(cfg, trainer, checkpoints, now, load, resume)
    about = (model.backbone.clip.source, describe_vocabulary(model.vocabulary))
    write_evaluation(result, cfg, *about, last_checkpoint, device, row, trainer.seconds)


def evaluate_checkpoint(cfg: Any, device: torch.device, row: str | None = None) -> dict[str, float]:
    """Evaluate `train.init_checkpoint` on the config's test set, and write the record; returns the metrics.

    Raises:
        ValueError: As `train_or_evaluate`.
    """
    loader, checkpoint = instantiate(cfg.dataloader.test), Path(cfg.train.init_checkpoint)
    classes = loader.dataset.dataset.classes
    model = build_detector(cfg, read_vocabulary(cfg, classes.names), classes.split).to(device)
    load_detector(model, checkpoint)
    result = evaluate(model, loader, device, cfg.evaluation.kinds, cfg.train.bf16)
    about = (model.backbone.clip.source, describe_vocabulary(model.vocabulary))
    write_evaluation(result, cfg, *about, checkpoint, device, row)
    return result.metrics


def read_vocabulary(cfg: Any, names: Sequence[str]) -> ClassEmbeddings:
    """Embeddings of class names: those of the file `vocabulary.path`, or of the text tower of the config's own CLIP.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Names without embedding, or a vocabulary that is none; see `load_class_embeddings`.
    """
    if cfg.vocabulary.path:
        return load_class_embeddings(cfg.vocabulary.path, names)
    arch, checkpoint, seed = (cfg.model.clip.get(name) for name in ("arch", "checkpoint", "random_seed"))
    clip = load_clip(arch, checkpoint, random_seed=seed)
    tower = f"{clip.arch}, weights {clip.checkpoint_sha256 or f'random, seed {seed}'}"
    return embed_class_names(clip.model, clip.tokenizer, names, tower, cfg.vocabulary.prompts)


def describe_vocabulary(vocabulary: ClassEmbeddings) -> dict[str, Any]:
    """What a record says about class embeddings."""
    return {"tower": vocabulary.tower, "prompts": vocabulary.prompts, "classes": len(vocabulary)}


def build_detector(cfg: Any, vocabulary: ClassEmbeddings, split: ClassSplit) -> FViT:
    """The config's model with a vocabulary, which a config cannot hold.

    Raises:
        FileNotFoundError: No CLIP where the config says.
        ValueError: Arguments that the model refuses, whatever it raises for them.
    """
    return build_model({**{name: cfg.model[name] for name in cfg.model}, "vocabulary": vocabulary, "split": split})


def _scale_lr(optimizer: torch.optim.Optimizer, batch_size: int, lr_batch_size: int) -> None:
    """The linear rule: the config's lr is for `lr_batch_size` images per iteration; 0 leaves it alone."""
    if lr_batch_size and batch_size != lr_batch_size:
        for group in optimizer.param_groups:
            group["lr"] *= batch_size / lr_batch_size
        get_logger().info("%d images per iteration, not %d: lr is scaled to match", batch_size, lr_batch_size)
