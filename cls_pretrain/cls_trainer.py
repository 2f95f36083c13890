"""The training loop of cls_pretrain: detectron2's trainer and hooks, with a step that can be resumed bit by bit.

Order and augmentation of the data depend on (seed, position) and the step's own randomness on (seed, iteration), so a
checkpoint needs no random state and a run continues exactly where it was killed.
"""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from cls_evaluator import Evaluation, evaluate, write_evaluation
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from progress_printer import ProgressPrinter
from strict_checkpointer import StrictCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from last_vit.runtime import all_reduce_sum

logger = logging.getLogger("detectron2")


class ClsTrainer(SimpleTrainer):
    """One step: forward and backward over micro-batches, checked for NaN before the weights are touched.

    Args:
        model: Takes (images, labels), returns a dict of losses.
        data_loader: Yields dicts with "image" float [B, 3, H, W] and "label" long [B].
        optimizer: Over the model's parameters.
        device: Where the batch goes.
        seed: Seeds every step together with its iteration and rank (dropout, drop path).
        bf16: Forward under bfloat16 autocast.
        clip_grad_norm: Largest L2 norm of the whole gradient; 0 leaves it alone.
        accumulation_steps: Micro-batches that a process's batch is split into; the gradient is that of the whole.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        seed: int = 0,
        bf16: bool = False,
        clip_grad_norm: float = 0.0,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if accumulation_steps < 1:
            raise ValueError(f"train.accumulation_steps must be at least 1, got {accumulation_steps}")
        self.device = device
        self.seed = seed
        self.bf16 = bf16
        self.clip_grad_norm = clip_grad_norm
        self.accumulation_steps = accumulation_steps
        self.seconds = 0.0
        self._step_end = 0.0

    def before_train(self) -> None:
        """Start the clock of `seconds`, which counts the whole run, over resumes and with evaluations."""
        self._step_end = time.perf_counter()
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        """detectron2's state and the seconds that the run has taken so far."""
        return {**super().state_dict(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.seconds = state_dict.get("seconds", 0.0)  # the release's files have none
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """One optimizer step on one batch per process."""
        waited_from = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - waited_from
        torch.manual_seed((self.seed * 1_000_003 + self.iter) * 4096 + comm.get_rank())
        images = batch["image"].to(self.device, non_blocking=True)
        labels = batch["label"].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(images, labels)
        self._check(losses)
        if self.clip_grad_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self._check({"gradient_norm": norm.detach()})
        self.optimizer.step()
        now = time.perf_counter()
        # written as they are, not as a running median, so that the curve of a resumed run has no seam
        losses["total_loss"] = sum(losses.values())
        self.storage.put_scalars(**{name: value.item() for name, value in losses.items()}, smoothing_hint=False)
        self.storage.put_scalars(
            data_time=data_time,
            images_per_second=len(images) * comm.get_world_size() / (now - self._step_end),
        )
        self.seconds += now - self._step_end
        self._step_end = now

    def _backward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batch; returns the losses, averaged over all processes."""
        totals: dict[str, Tensor] = {}
        chunks = list(zip(images.chunk(self.accumulation_steps), labels.chunk(self.accumulation_steps), strict=True))
        for i, (image_chunk, label_chunk) in enumerate(chunks):
            last = i + 1 == len(chunks)
            is_ddp = isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if is_ddp and not last else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    losses = self.model(image_chunk, label_chunk)
                share = len(image_chunk) / len(images)
                (sum(losses.values()) * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * share
        return {name: all_reduce_sum(value) / comm.get_world_size() for name, value in totals.items()}

    def _check(self, terms: dict[str, Tensor]) -> None:
        """Stop every process before the optimizer sees a value that is not finite."""
        for name, value in terms.items():
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value.item()} at iteration {self.iter}; the weights were not changed and the last "
                    f"checkpoint is good: resume with a lower optimizer.lr or with train.clip_grad_norm=1.0"
                )


def train(cfg: Any, device: torch.device, resume: bool, row: str | None = None) -> dict[str, float]:
    """Build everything that a config describes and train to `train.max_iter`.

    Args:
        cfg: LazyConfig with model, optimizer, lr_multiplier, dataloader, evaluation and train.
        device: This process's device.
        resume: Continue from the last checkpoint in `train.output_dir`.
        row: As in `write_evaluation`.

    Returns:
        Metrics of the evaluation after the last iteration.

    Raises:
        FileExistsError: The output folder holds another run's checkpoints and `resume` is off.
        FloatingPointError: A loss, gradient norm or weight is not finite.
    """
    output_dir = Path(cfg.train.output_dir)
    if not resume and (output_dir / "last_checkpoint").exists():
        raise FileExistsError(
            f"{output_dir} holds the checkpoints of an earlier run: continue it with --resume, or choose another "
            f"train.output_dir"
        )
    model = instantiate(cfg.model).to(device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    train_loader, test_loader = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    if cfg.train.compile:
        model.compile()
    wrapped = model if comm.get_world_size() == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    trainer = ClsTrainer(
        wrapped,
        train_loader,
        optimizer,
        device,
        seed=cfg.train.seed,
        bf16=cfg.train.bf16,
        clip_grad_norm=cfg.train.clip_grad_norm,
        accumulation_steps=cfg.train.accumulation_steps,
    )
    checkpointer = StrictCheckpointer(model, output_dir, trainer=trainer)
    start_iter = checkpointer.resume(trainer) if resume else 0
    if start_iter == 0 and cfg.train.init_checkpoint:
        checkpointer.load_weights(cfg.train.init_checkpoint)
    train_loader.batch_sampler.start_iteration = start_iter

    evaluations: list[Evaluation] = []

    def run_evaluation() -> dict[str, float]:
        evaluations.append(evaluate(model, test_loader, device, **cfg.evaluation))
        model.train()
        return evaluations[-1].metrics

    main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, run_evaluation),
            hooks.PeriodicWriter(
                [
                    ProgressPrinter(cfg.train.max_iter),
                    JSONWriter(str(output_dir / "metrics.json")),
                    TensorboardXWriter(str(output_dir)),
                ],
                period=cfg.train.log_period,
            )
            if main
            else None,
        ]
    )
    trainer.train(start_iter, cfg.train.max_iter)
    final = output_dir / "model_final.pth"
    write_evaluation(evaluations[-1], cfg, model, device, final, row, trainer.seconds)
    return evaluations[-1].metrics
