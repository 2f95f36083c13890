"""What every training here shares, with torch alone: steps that repeat bit by bit, and losses that are watched.

Order and augmentation of the data depend on (seed, position), see `data/loaders.py`, and what a step itself
draws (dropout, drop path, sampled regions) on (seed, iteration, rank). So a checkpoint needs no random state.

A GPU computes while Python goes on, and `tensor.item()` would wait for all that was started before it. So losses are
looked at one step late, but always before anything logs, evaluates or saves: what is not finite never reaches a file.
"""

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, save_checkpoint
from last_vit.late_scalars import LateScalars, StopVote
from last_vit.runtime import all_gather, all_reduce_sum, is_main_process, rank, world_size
from last_vit.stopping import Stopped, resume_command, stop_signal

_NORM = "gradient_norm"
_COMPRESSIONS = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
logger = logging.getLogger("detectron2")  # also writes the run's log.txt


def require_finite(losses: Mapping[str, float], where: str, remedy: str) -> None:
    """Raise FloatingPointError for losses that are not all finite, naming the first bad one, its place and a remedy."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} {where}; {remedy}")


def way_on(checkpoint: str | Path | None, advice: str, flags: str = "") -> str:
    """The remedy of a run whose loss is not finite: from its last checkpoint by `flags`, if any, or from the start."""
    if checkpoint and Path(checkpoint).exists():
        return f"the last checkpoint, {checkpoint}, is good: resume from it with {flags}{advice}"
    return f"there is no checkpoint yet: start again with {advice}"


def stop_run(done: str, checkpoint: str | Path, *flags: str) -> NoReturn:
    """End a run that was asked to stop, when the main process has saved it; call it in all processes.

    `done` is such as "after iteration 3", `checkpoint` what was saved; with `flags` the command resumes.
    """
    if world_size() > 1:
        dist.barrier()  # a launcher ends all processes with the first
    message = f"stopped {done}, saved in {checkpoint}; go on with: {resume_command(*flags)}"
    raise Stopped(message if is_main_process() else "", stop_signal() or signal.SIGTERM)


def seed_step(seed: int, iteration: int) -> None:
    """Make what this process draws in one step a function of (seed, iteration, rank)."""
    torch.manual_seed((seed * 1_000_003 + iteration) * 4096 + rank())


def average_gradients(model: nn.Module, compression: str = "none") -> nn.Module:
    """The model, under DDP where there are several processes; buffers stay each process's own.

    With `compression` "fp16" or "bf16" gradients are sent in half the bytes, rounded; bf16 keeps float32's range.
    ValueError for another than these and "none".
    """
    if compression not in ("none", *_COMPRESSIONS):
        raise ValueError(
            f"train.gradient_compression must be one of none, {', '.join(_COMPRESSIONS)}, got {compression!r}"
        )
    if world_size() == 1:
        return model
    parallel = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    if compression in _COMPRESSIONS:
        parallel.register_comm_hook(None, _COMPRESSIONS[compression])
    return parallel


def micro_batches(
    model: nn.Module, num_parts: int, batch: Sequence[Tensor]
) -> Iterator[tuple[tuple[Tensor, ...], float]]:
    """Split a process's batch for gradient accumulation; run forward and backward inside the loop.

    At most `num_parts` parts of tensors of the same samples along dimension 0. Under DDP gradients are exchanged for
    the last part only. Yields a part of every tensor, and the part's share of the samples, by which its mean loss is
    to be multiplied.
    """
    parts = list(zip(*(tensor.chunk(num_parts) for tensor in batch), strict=True))
    for i, part in enumerate(parts):
        is_partial = isinstance(model, DistributedDataParallel) and i + 1 < len(parts)
        with model.no_sync() if is_partial else contextlib.nullcontext():
            yield part, len(part[0]) / len(batch[0])


def with_own_options(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved optimizer state with this run's own options (lr, weight decay, ...); torch would take the file's.

    ValueError: The state is of other groups of parameters.
    """
    own, theirs = optimizer.state_dict()["param_groups"], saved["param_groups"]
    counts = [[len(group["params"]) for group in groups] for groups in (theirs, own)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"its optimizer holds {counts[0]} tensors per group, this run trains {counts[1]}: the network, or which of "
            f"its parts are trained, differ"
        )
    groups = [{**mine, "params": group["params"]} for mine, group in zip(own, theirs, strict=True)]
    return {"state": saved["state"], "param_groups": groups}


def check_same_start(start: int, folder: str | Path) -> None:
    """Raise ValueError, in every process, where the processes of a run found different checkpoints."""
    starts = [int(each) for each in all_gather(torch.tensor(start))]
    if len(set(starts)) > 1:
        raise ValueError(f"the processes would start at {starts}: every machine must see the same {folder}")


class RepeatableSteps:
    """The step of `class OwnTrainer(RepeatableSteps, SimpleTrainer)`, which says in `backward` what a batch is.

    Loop, hooks and event storage are those of detectron2's `SimpleTrainer`, which is named behind this class so that
    this module does not need detectron2. The model is in training mode from here on; `seed` seeds every step together
    with its iteration and rank; `clip_grad_norm` is the largest L2 norm of the whole gradient, 0 leaves it alone.

    `seconds` is what the run has taken so far, over resumes and with evaluations. With `checkpoints` it saves and ends
    when it is asked to stop. A step that ends one of the `read_periods` (0 is none) is waited for, because hooks look
    at its losses or weights; by default every step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        seed: int = 0,
        bf16: bool = False,
        clip_grad_norm: float = 0.0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.seed = seed
        self.bf16 = bf16
        self.clip_grad_norm = clip_grad_norm
        self.seconds = 0.0
        self.read_periods: Sequence[int] = (1,)
        self.checkpoints: RunCheckpoints | None = None
        self._is_asked_to_stop = StopVote(self.device)
        self._last: tuple[int, LateScalars] | None = None
        self._step_end = 0.0

    def backward(self, batch: Any) -> tuple[dict[str, Tensor], int]:
        """Add this process's gradients of the summed losses -> the losses, detached scalars, and the images in them."""
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """bfloat16 autocast for the forward pass, where the run is in bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def before_train(self) -> None:
        """Start the clock of `seconds`."""
        self._step_end = time.perf_counter()
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        """detectron2's state and `seconds`."""
        return {**super().state_dict(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`, with the optimizer options of this run."""
        self.seconds = state_dict.get("seconds", 0.0)  # detectron2's own files have none
        options = with_own_options(self.optimizer, state_dict["optimizer"])
        for group in options["param_groups"]:
            group["initial_lr"] = group["lr"]  # the schedule sets lr from initial_lr and the iteration
        super().load_state_dict({**state_dict, "optimizer": options})

    def run_step(self) -> None:
        """One optimizer step on one batch per process."""
        waited_from = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - waited_from
        seed_step(self.seed, self.iter)
        self.optimizer.zero_grad(set_to_none=True)
        own, num_images = self.backward(batch)
        # all losses in one message between processes
        values = all_reduce_sum(torch.stack([value.float() for value in own.values()])) / world_size()
        names = tuple(own)
        if self.clip_grad_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            names, values = (*names, _NORM), torch.cat((values, norm.detach().float()[None]))
        self.optimizer.step()
        self.read_losses()  # of the step before
        self._last = self.iter, LateScalars(names, values)
        now = time.perf_counter()
        speed = num_images * world_size() / (now - self._step_end)
        self.storage.put_scalars(data_time=data_time, images_per_second=speed)
        self.seconds += now - self._step_end
        self._step_end = now

    def after_step(self) -> None:
        """Hooks, which find the losses of this step where they look at them."""
        done = self.iter + 1
        if done == self.max_iter or any(period > 0 and done % period == 0 for period in self.read_periods):
            self.read_losses()
        super().after_step()
        if self.checkpoints is not None and self._is_asked_to_stop():
            self.read_losses()
            self.checkpoints.save_and_stop()

    def read_losses(self) -> None:
        """Check and store the losses, and the gradient's norm, of the last step not read yet; waits for that step."""
        if self._last is None:
            return
        (iteration, values), self._last = self._last, None
        advice = f"a lower optimizer.lr, with train.clip_grad_norm={min(1.0, self.clip_grad_norm / 2 or 1.0):g}"
        advice += " or with train.bf16=False" if self.bf16 else ""
        last = self.checkpoints.get_checkpoint_file() if self.checkpoints is not None else None
        require_finite(values, f"at iteration {iteration}", way_on(last, advice, "--resume and "))
        losses = {name: value for name, value in values.items() if name != _NORM}
        # written as they are, not as a running median, so that the curve of a resumed run has no seam
        self.storage.put_scalars(**losses, total_loss=sum(losses.values()), smoothing_hint=False, cur_iter=iteration)


class RunCheckpoints:
    """The checkpoints of a run, with what detectron2's `PeriodicCheckpointer` asks of one.

        {"model": {key: tensor}, "trainer": {"iteration", "optimizer", ...}, "iteration": int, ...}

    `about` is what every file says beside weights and state: what the weights were trained with. `load` loads a file of
    this layout into the model and returns its content; ValueError where the file was trained with something else.
    """

    def __init__(
        self,
        trainer: RepeatableSteps,
        folder: str | Path,
        about: Mapping[str, Any],
        load: Callable[[Path], Mapping[str, Any]],
    ) -> None:
        self._trainer, self._folder, self._about, self._load = trainer, Path(folder), dict(about), load
        trainer.checkpoints = self
        self._model = trainer.model.module if isinstance(trainer.model, DistributedDataParallel) else trainer.model

    @property
    def path_manager(self) -> Any:
        """What looks for the files that are too many, and removes them."""
        return SimpleNamespace(exists=os.path.exists, rm=os.remove)

    def save(self, name: str, **state: Any) -> None:
        """Write `<name>.pth`, from which a run resumes; raises as `save_weights`."""
        self.save_weights(name, trainer=self._trainer.state_dict(), **state)
        with atomic_file(self._folder / "last_checkpoint") as file:
            file.write(f"{name}.pth".encode())

    def save_weights(self, name: str, **state: Any) -> Path:
        """Write and return `<name>.pth`, which is to be evaluated; weights that are not finite never replace good ones.

        FloatingPointError: A weight is NaN or infinite. OSError: The file cannot be written; earlier checkpoints are
        intact.
        """
        weights, path = self._model.state_dict(), self._folder / f"{name}.pth"
        check_finite(weights)
        save_checkpoint(path, {"model": weights, **state, **self._about})
        return path

    def save_and_stop(self) -> NoReturn:
        """Save after the iteration that has just ended, and end the run."""
        iteration = self._trainer.iter
        name = f"model_{iteration:07d}"
        if is_main_process():
            self.save(name, iteration=iteration)
        stop_run(f"after {iteration + 1} iterations", self._folder / f"{name}.pth", "--resume")

    def get_checkpoint_file(self) -> str:
        """The last checkpoint, under the name that detectron2 calls it by; "" where there is none."""
        pointer = self._folder / "last_checkpoint"
        return str(self._folder / pointer.read_text(encoding="utf-8").strip()) if pointer.exists() else ""

    def resume(self) -> int:
        """Load weights, optimizer state and iteration of the last checkpoint; returns the iteration to start with.

        That is 0 without a checkpoint. ValueError as from `load`.
        """
        path = self.get_checkpoint_file()
        if not path:
            logger.info("No checkpoint in %s: starting at iteration 0", self._folder)
            return 0
        self._trainer.load_state_dict(self._load(Path(path))["trainer"])
        logger.info("Resuming from %s after iteration %d", path, self._trainer.iter)
        return self._trainer.iter + 1
