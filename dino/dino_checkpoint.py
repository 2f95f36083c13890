"""Checkpoints of a run in DINO's format, written atomically, and the way back, also from DINO's own files.

    {"student": {"module.backbone.*", "module.head.*"}, "teacher": {"backbone.*", "head.*"}, "optimizer": ...,
     "epoch": epochs done, "args": {flag: value}, "dino_loss": {"center": [1, C]}, "fp16_scaler": with float16 only,
     "pooling": what `last_vit.dense.pooling_of` reports, "within_epoch": of a run that was stopped there only}

The student's `module.` is DistributedDataParallel's, which DINO always has; the teacher carries it only where the
networks have batch norm. The last two are ours; in DINO's files "args" is a pickled Namespace, which
`last_vit.checkpoint.read_checkpoint` reads without running code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dino_backbone import has_batch_norm
from dino_step import DinoStep

from last_vit.checkpoint import check_finite, load_strict, read_checkpoint, save_checkpoint
from last_vit.train_lib import with_own_options

_DDP = "module."


class Progress(NamedTuple):
    """How far a run is: whole epochs, and iterations of the next one."""

    epoch: int
    iteration: int = 0
    length: int = 0  # iterations of that epoch
    totals: Mapping[str, float] = {}  # of its log
    last: Mapping[str, float] = {}  # what the last iteration adds to them


def save_run(
    folder: Path, step: DinoStep, done: Progress, options: Mapping[str, Any], pooling: Mapping[str, Any]
) -> None:
    """Write `checkpoint.pth`, and `checkpoint<epoch>.pth` every `saveckp_freq` epochs; in the main process only.

    `done` is what `resume_run` is to return, `options` are flags of main_dino.py, plain values only. Where a weight is
    not finite, or a file cannot be written, earlier files are untouched.
    """
    student, teacher = step.student.state_dict(), step.teacher.state_dict()
    check_finite(student)
    check_finite(teacher)
    prefix = _DDP if has_batch_norm(step.teacher) else ""
    checkpoint = {
        "student": {_DDP + name: tensor for name, tensor in student.items()},
        "teacher": {prefix + name: tensor for name, tensor in teacher.items()},
        "optimizer": step.optimizer.state_dict(),
        "epoch": done.epoch,
        "args": dict(options),
        "dino_loss": step.loss.state_dict(),
        "pooling": dict(pooling),
    }
    if step.scaler is not None:
        checkpoint["fp16_scaler"] = step.scaler.state_dict()
    if done.iteration:
        totals = {name: done.totals.get(name, 0.0) + value for name, value in done.last.items()}
        checkpoint["within_epoch"] = {"iteration": done.iteration, "length": done.length, "totals": totals}
    save_checkpoint(folder / "checkpoint.pth", checkpoint)
    epoch = done.epoch - 1
    if options["saveckp_freq"] and epoch % options["saveckp_freq"] == 0 and not done.iteration:
        save_checkpoint(folder / f"checkpoint{epoch:04}.pth", checkpoint)


def resume_run(folder: Path, step: DinoStep, options: Mapping[str, Any], pooling: Mapping[str, Any]) -> Progress:
    """Continue from `folder/checkpoint.pth`, ours or DINO's, or start where there is none; arguments as in `save_run`.

    ValueError where the checkpoint is damaged, or of a run with another network, pooling or optimizer.
    """
    path = folder / "checkpoint.pth"
    if not path.exists():
        return Progress(0)
    checkpoint = read_checkpoint(path)
    absent = [name for name in ("student", "teacher", "optimizer", "epoch", "dino_loss") if name not in checkpoint]
    if absent:
        raise ValueError(f"{path} is no training checkpoint of DINO: it lacks {', '.join(absent)}; move it elsewhere")
    _check_same_run(path, checkpoint, options, pooling)
    try:
        for network, name in ((step.student, "student"), (step.teacher, "teacher")):
            load_strict(network, {key.removeprefix(_DDP): tensor for key, tensor in checkpoint[name].items()})
        load_strict(step.loss, checkpoint["dino_loss"])
        step.optimizer.load_state_dict(with_own_options(step.optimizer, checkpoint["optimizer"]))
    except ValueError as error:
        flags = "resume with the run's own --arch, --out_dim, --norm_last_layer, ..."
        raise ValueError(f"cannot resume from {path}: {error}; {flags}") from error
    if step.scaler is not None and "fp16_scaler" in checkpoint:
        step.scaler.load_state_dict(checkpoint["fp16_scaler"])
    return Progress(int(checkpoint["epoch"]), **checkpoint.get("within_epoch", {}))


def _check_same_run(
    path: Path, checkpoint: Mapping[str, Any], options: Mapping[str, Any], pooling: Mapping[str, Any]
) -> None:
    """Refuse what a run cannot go on with under another value, though every tensor would fit."""
    read_out = {"pool": "cls"} if pooling["pool"] != "host" else {"pool": "host"}  # DINO's own, unrecorded
    recorded = checkpoint.get("pooling") or read_out
    # sigma, top_k and variant are None unless the pool is LaSt's
    if {k: v for k, v in recorded.items() if v is not None} != {k: v for k, v in pooling.items() if v is not None}:
        raise ValueError(
            f"{path} was trained with pooling {recorded}, this run pools with {dict(pooling)}: resume with the run's "
            f"own --pooling, --top_k and --variant, or choose another --output_dir"
        )
    saved = checkpoint.get("args", {})
    optimizer = (saved if isinstance(saved, Mapping) else vars(saved)).get("optimizer", options["optimizer"])
    if optimizer != options["optimizer"]:
        raise ValueError(
            f"{path} was trained with --optimizer {optimizer}, this run has --optimizer {options['optimizer']}: resume "
            f"with the run's own, or choose another --output_dir"
        )
