"""A detector's training or evaluation from a config: its parts are built and checked, resumed, and driven."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from class_embeddings import ClassEmbeddings, ClassSplit, embed_class_names, load_class_embeddings
from detectron2.config import instantiate
from detectron2.utils.events import CommonMetricPrinter
from fvit.fvit_model import FViT
from ov_checkpoint import about_detector, load_detector
from ov_data import check_same_classes
from ov_evaluation import OvEvaluation, evaluate, write_evaluation
from ov_trainer import OvTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from last_vit.clip_models import load_clip
from last_vit.lazy.checkpoints import RunCheckpoints
from last_vit.lazy.run import run_iterations, share_buffers
from last_vit.runtime import get_logger, world_size


def train(cfg: Any, device: torch.device, resume: bool, row: str | None = None) -> dict[str, float]:
    """Train what a config describes to `train.max_iter`, evaluate, and write the record.

    Args:
        cfg: LazyConfig with model, vocabulary, optimizer, lr_multiplier, dataloader, evaluation and train.
        device: This process's device.
        resume: Continue from the last checkpoint in `train.output_dir`.
        row: As in `write_evaluation`.

    Returns:
        Metrics of the evaluation after the last iteration (in the main process).

    Raises:
        ValueError: Data, embeddings, model, checkpoint and config that do not belong together.
        FloatingPointError: A loss, gradient norm or weight is not finite.
    """
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    classes = train_loader.dataset.dataset.classes
    check_same_classes(classes, test_loader.dataset.dataset.classes)
    torch.manual_seed(cfg.train.seed)
    model = build_detector(cfg, read_vocabulary(cfg, classes.names), classes.split).to(device)
    wrapped: nn.Module = model
    if world_size() > 1:
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    cfg.optimizer.params.model = model
    trainer = OvTrainer(
        wrapped,
        train_loader,
        instantiate(cfg.optimizer),
        seed=cfg.train.seed,
        bf16=cfg.train.bf16,
        clip_grad_norm=cfg.train.clip_grad_norm,
    )
    _scale_lr(trainer.optimizer, cfg.dataloader.train.batch_size * world_size(), cfg.train.lr_batch_size)
    load = partial(load_detector, model)
    checkpoints = RunCheckpoints(model, cfg.train.output_dir, trainer, about_detector(model), load)
    evaluations: list[OvEvaluation] = []

    def run_evaluation() -> dict[str, float]:
        share_buffers(model)
        evaluations.append(evaluate(model, test_loader, device, cfg.evaluation.kinds, cfg.train.bf16))
        model.train()
        return evaluations[-1].metrics

    printer = CommonMetricPrinter(cfg.train.max_iter)
    last_checkpoint = run_iterations(cfg, trainer, checkpoints, run_evaluation, load, printer, resume)
    about = (model.backbone.clip.source, describe_vocabulary(model.vocabulary))
    write_evaluation(evaluations[-1], cfg, *about, last_checkpoint, device, row, trainer.seconds)
    return evaluations[-1].metrics


def evaluate_checkpoint(cfg: Any, device: torch.device, row: str | None = None) -> dict[str, float]:
    """Evaluate `train.init_checkpoint` on the config's test set, and write the record.

    Args:
        cfg: As in `train`.
        device: This process's device.
        row: As in `write_evaluation`.

    Returns:
        The metrics (in the main process).

    Raises:
        ValueError: As in `train`.
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
    try:
        return instantiate({**{name: cfg.model[name] for name in cfg.model}, "vocabulary": vocabulary, "split": split})
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"the config's model cannot be built ({type(error).__name__}): {error}") from error


def _scale_lr(optimizer: torch.optim.Optimizer, batch_size: int, lr_batch_size: int) -> None:
    """The linear rule: the config's lr is for `lr_batch_size` images per iteration; 0 leaves it alone."""
    if lr_batch_size and batch_size != lr_batch_size:
        for group in optimizer.param_groups:
            group["lr"] *= batch_size / lr_batch_size
        get_logger().info("%d images per iteration, not %d: lr is scaled to match", batch_size, lr_batch_size)
