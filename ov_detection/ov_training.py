"""A detector's training or evaluation from a config: its parts are built and checked, resumed, driven and recorded."""

import argparse
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detection_dump import DumpWriter
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from fvit.fvit_layers import SquareDetector
from omegaconf import OmegaConf
from ov_classes import check_same_classes
from ov_data import OvImageSet
from ov_detector import detector_of, load_detector
from ov_evaluator import OvEvaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from last_vit.checkpoint import file_sha256
from last_vit.evaluation import print_table, progress
from last_vit.lazy_config import launch_run, set_up_run
from last_vit.lazy_run import run_iterations, write_run_record
from last_vit.runtime import is_main_process, world_size
from last_vit.train_lib import RepeatableSteps, RunCheckpoints, average_gradients, logger, micro_batches


class BatchGroups:
    """A training loader of which every `size` batches are one iteration: each item is their list."""

    def __init__(self, loader: DataLoader, size: int) -> None:
        self.loader, self.size = loader, size
        self.start_iteration = 0
        self.batch_sampler = self  # who resumes a run sets its start_iteration

    def __iter__(self) -> Iterator[list[Any]]:
        self.loader.batch_sampler.start_iteration = self.start_iteration * self.size
        batches = iter(self.loader)
        while True:
            yield [next(batches) for _ in range(self.size)]


class OvTrainer(RepeatableSteps, SimpleTrainer):
    """Trains on `BatchGroups` of detectron2's samples; what a step draws are the anchors and regions for the losses."""

    epoch_length = 1  # iterations

    def backward(self, batches: list[list[dict[str, Any]]]) -> tuple[dict[str, Tensor], int]:
        """Gradients of the sum of the detector's losses, the mean over the batches of one iteration."""
        means: dict[str, Tensor] = {}
        for (place,), share in micro_batches(self.model, len(batches), [torch.arange(len(batches))]):
            with self.autocast():
                losses = self.model(batches[int(place)])
            losses = {name: value * share for name, value in losses.items()}
            sum(losses.values()).backward()
            means = {name: value.detach() + means.get(name, 0) for name, value in losses.items()}
        self.storage.put_scalar("epoch", (self.iter + 1) / self.epoch_length, smoothing_hint=False)
        return means, sum(map(len, batches))


class OvEvaluation(NamedTuple):
    """What one pass over a test set found."""

    metrics: dict[str, float]  # as `OvEvaluator.evaluate` names them; {} in every process but the main one
    num_images: int  # all processes together
    seconds: float  # wall time of detection and AP
    per_class: list[list[float | str]] | None  # of `OvEvaluator.evaluate`; None where metrics are {}


def run(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in all processes."""
    launch_run(args, train_or_evaluate)


def train_or_evaluate(args: argparse.Namespace) -> None:
    """What lazy_train.py was asked for, in this process.

    ValueError: Data, embeddings, model, checkpoint and config that do not belong together. FloatingPointError: A loss,
    gradient norm or weight is not finite.
    """
    cfg, device = set_up_run(args, "in ov_detection/configs/")
    if args.eval_only:
        evaluate_checkpoint(cfg, device, args.row)
    else:
        _train(cfg, device, args.resume, args.row)


def _train(cfg: Any, device: torch.device, resume: bool, row: str | None) -> None:
    train_loader, test_loaders = instantiate(cfg.dataloader.train), _test_loaders(cfg)
    classes = train_loader.dataset.dataset.classes
    check_same_classes(classes, test_loaders[""].dataset.dataset.classes)
    torch.manual_seed(cfg.train.seed)
    model = detector_of(cfg, classes.names, classes.base_names, device, has_weights=bool(cfg.train.init_checkpoint))
    cfg.optimizer.params.model = model
    options = {name: cfg.train[name] for name in ("seed", "bf16", "clip_grad_norm")}
    per_iteration, epoch_length = plan_run(cfg, len(train_loader.dataset.dataset), world_size())
    batches = BatchGroups(train_loader, per_iteration)
    parallel = average_gradients(model, cfg.train.get("gradient_compression", "none"))
    trainer = OvTrainer(parallel, batches, instantiate(cfg.optimizer), **options)
    trainer.epoch_length = epoch_length
    num_images = cfg.dataloader.train.batch_size * world_size() * per_iteration
    _scale_lr(trainer.optimizer, num_images, cfg.train.lr_batch_size)
    load = partial(load_detector, model)
    checkpoints = RunCheckpoints(trainer, cfg.train.output_dir, {"detector": model.about}, load)

    def now() -> OvEvaluation:
        logger.info("Evaluation after %.4g epochs", min(trainer.iter + 1, cfg.train.max_iter) / epoch_length)
        return _evaluate_all(cfg, model, test_loaders, device)

    def write(result: OvEvaluation, checkpoint: Path, is_best: bool) -> None:
        _write_evaluation(result, cfg, model, checkpoint, device, row, trainer.seconds, is_best)

    run_iterations(cfg, trainer, checkpoints, now, write, load, resume)


def evaluate_checkpoint(cfg: Any, device: torch.device, row: str | None = None) -> dict[str, float]:
    """Evaluate `train.init_checkpoint` on the config's test set, and write the record; returns the metrics.

    ValueError: As `train_or_evaluate`.
    """
    loaders, checkpoint = _test_loaders(cfg), Path(cfg.train.init_checkpoint)
    classes = loaders[""].dataset.dataset.classes
    model = detector_of(cfg, classes.names, classes.base_names, device, has_weights=True)
    load_detector(model, checkpoint)
    model.roi_heads.mask_on &= "mask" in cfg.evaluation.kinds
    result = _evaluate_all(cfg, model, loaders, device)
    _write_evaluation(result, cfg, model, checkpoint, device, row)
    return result.metrics


def _test_loaders(cfg: Any) -> dict[str, DataLoader]:
    """The test set under "", and where a config has `dataloader.seen`, images of the training, under "seen_"."""
    found = {"": instantiate(cfg.dataloader.test)}
    return {**found, "seen_": instantiate(cfg.dataloader.seen)} if "seen" in cfg.dataloader else found


def _evaluate_all(cfg: Any, model: nn.Module, loaders: dict[str, DataLoader], device: torch.device) -> OvEvaluation:
    """`evaluate` on each set; metrics of the others stand beside the test set's, their names before them."""
    found = {}
    for name, loader in loaders.items():
        settings = {**cfg.evaluation, "dump": None} if name else cfg.evaluation
        found[name] = evaluate(model, loader, device, settings, cfg.train.bf16)
    metrics = {f"{name}{key}": value for name, each in found.items() for key, value in each.metrics.items()}
    return found[""]._replace(metrics=metrics)


def evaluate(
    model: nn.Module, loader: DataLoader, device: torch.device, settings: Mapping[str, Any], bf16: bool
) -> OvEvaluation:
    """Detect on this process's share of the images, and evaluate in the main process; the model stays in eval mode.

    `settings` are the config's `evaluation`.
    """
    model.eval()
    dataset: OvImageSet = loader.dataset.dataset  # the loader takes a Subset of the data set
    dump = None
    if settings.get("dump"):
        dump = DumpWriter(settings["dump"], model.roi_heads, settings["dump_regions"])
    evaluator = OvEvaluator(dataset.json_file, tuple(settings["kinds"]), dataset.novel, dataset.image_ids, dump)
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in progress(loader, "evaluate"):
            evaluator.process(batch, model(batch))
    found = evaluator.evaluate()
    comm.synchronize()
    seconds = time.perf_counter() - start
    return OvEvaluation(found.get("detection", {}), evaluator.num_images, seconds, found.get("per_class"))


def plan_run(cfg: Any, num_images: int, num_processes: int) -> tuple[int, int]:
    """Work out a config's lengths in iterations, in place, and log them.

    An iteration is of F-ViT's 64 images (`train.lr_batch_size`) on any number of GPUs: each process takes several
    batches of `dataloader.train.batch_size` where there are fewer than 8, and adds up their gradients. Only the norms'
    statistics are of single batches. `train.accumulate` is that number of batches, where a config says it.

        train.epochs          train.max_iter
        train.lr_steps        lr_multiplier.scheduler.milestones
        train.warmup_images   lr_multiplier.warmup_length, a share of the run
        train.eval_epochs     train.eval_period
        train.checkpoint_epochs  train.checkpointer.period

    What stands on the right is in iterations; it is worked out from what stands on the left, or taken where it is
    given. An epoch has the images of the training set rounded up to whole iterations, as in mmdet.
    Returns batches per iteration and process, and iterations per epoch. ValueError for a length that is not positive;
    train.eval_epochs may be 0, for no evaluation before the end.
    """
    train, per_process = cfg.train, cfg.dataloader.train.batch_size
    accumulate = train.get("accumulate") or max(1, round(train.lr_batch_size / (per_process * num_processes)))
    images = per_process * num_processes * accumulate
    epoch = math.ceil(num_images / images)

    def iterations(name: str, smallest: int = 1) -> int:
        if train[name] < 0 or (smallest and train[name] == 0) or not math.isfinite(train[name]):
            raise ValueError(f"train.{name} must be {'positive' if smallest else '0 or more'}, got {train[name]}")
        return max(1, round(train[name] * epoch)) if train[name] else 0

    if train.max_iter is None:
        train.max_iter = iterations("epochs")
    if train.eval_period is None:
        train.eval_period = iterations("eval_epochs", smallest=0)
    if train.checkpointer.period is None:
        train.checkpointer.period = iterations("checkpoint_epochs")
    steps = cfg.lr_multiplier.get("scheduler", {})
    if "milestones" in steps and steps.milestones is None:
        steps.milestones = [at for at in (round(step * epoch) for step in train.lr_steps) if at < train.max_iter]
        steps["values"] = steps["values"][: len(steps.milestones) + 1]
    if "warmup_length" in cfg.lr_multiplier and cfg.lr_multiplier.warmup_length is None:
        cfg.lr_multiplier.warmup_length = min(1.0, train.warmup_images / (images * train.max_iter))
    logger.info(
        "%.4g epochs of %d images are %d iterations of %d (%d processes x %d batches x %d); in epochs and iterations, "
        "evaluation is every %.4g = %d, a checkpoint every %.4g = %d",
        *(train.max_iter / epoch, num_images, train.max_iter, images, num_processes, accumulate, per_process),
        *(train.eval_period / epoch, train.eval_period),
        *(train.checkpointer.period / epoch, train.checkpointer.period),
    )
    return accumulate, epoch


def _scale_lr(optimizer: torch.optim.Optimizer, batch_size: int, lr_batch_size: int) -> None:
    """The linear rule: the config's lr is for `lr_batch_size` images per iteration; 0 leaves it alone."""
    if lr_batch_size and batch_size != lr_batch_size:
        for group in optimizer.param_groups:
            group["lr"] *= batch_size / lr_batch_size
        logger.info("%d images per iteration, not %d: lr is scaled to match", batch_size, lr_batch_size)


def _write_evaluation(
    result: OvEvaluation,
    cfg: Any,
    model: SquareDetector,
    checkpoint: Path,
    device: torch.device,
    row: str | None,
    train_seconds: float | None = None,
    is_best: bool = False,
) -> None:
    """Print an evaluation and write it down, in the main process; arguments as `write_run_record`'s."""
    if not is_main_process():
        return
    numbers = {**result.metrics, "images": result.num_images}
    if not is_best:
        print_table([(name, f"{n:.2f}" if isinstance(n, float) else str(n)) for name, n in numbers.items()])
    path = write_run_record(
        cfg,
        cfg.evaluation.table,
        row,
        result.metrics,
        train_seconds,
        is_best,
        n_images=result.num_images,
        dataset=f"{cfg.evaluation.dataset}, {cfg.dataloader.test.dataset.size} px",
        config={
            **{part: source for part, source in model.about.items() if not part.endswith("names")},
            **model.described,
            "model": OmegaConf.to_container(cfg.model.roi_heads, resolve=True),
        },
        checkpoint_sha256=file_sha256(checkpoint)[:16],
        seconds=result.seconds,
        device=device,
        details=result.per_class,
    )
    if cfg.evaluation.get("dump") and not is_best:
        shutil.copy(path, Path(cfg.evaluation.dump) / "record.json")
    print(f"written to {path}")
