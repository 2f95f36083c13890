"""Training steps of cls_pretrain and dino as their own trainers take them, and the release's. For benches only.

A `Side` trains one model: `side(steps)` takes that many steps. Batches are on the device before the clock starts, so
that models and trainers are measured and no loader is.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bench_pooling import straightforward_pool
from bench_tracks import ROOT, load_track
from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.lazy.command import read_config
from last_vit.lazy.trainer import RepeatableSteps
from last_vit.pooling import last_pool

Side = Callable[[int], None]
Curve = Callable[[], list[float]]
DINO_TOP_K = "0.25"  # of dino/recipes


@dataclass(frozen=True)
class Numerics:
    """How to compute.

    Attributes:
        device: Where.
        bf16: bfloat16 autocast; else float32.
        compiled: torch.compile, as the track's own switch does it.
    """

    device: torch.device
    bf16: bool = False
    compiled: bool = False


def read_recipe(name: str, pool: str, image_size: int) -> Any:
    """A recipe of cls_pretrain/configs by its file name, with a read-out and an image size of its own."""
    overrides = [f"model.pool={pool}", f"model.model.image_size={image_size}"]
    return read_config(str(ROOT / "cls_pretrain" / "configs" / f"{name}.py"), overrides, "cls_pretrain/configs/")


def cls_side(cfg: Any, batch: int, numerics: Numerics) -> tuple[Side, Curve]:
    """Steps by cls_pretrain's trainer on a recipe, from seed 0, and the losses that it has written."""
    (cls_trainer,) = load_track("cls_pretrain", "cls_trainer")
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(numerics.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    if numerics.compiled:
        model.compile()
    trainer = cls_trainer.ClsTrainer(
        model=model,
        data_loader=_image_batches(cfg, batch, numerics.device),
        optimizer=optimizer,
        bf16=numerics.bf16,
        clip_grad_norm=cfg.train.clip_grad_norm,
    )
    trainer.read_periods = (cfg.train.log_period,)
    return _driven(trainer)


def pooling_side(cfg: Any, batch: int, numerics: Numerics) -> Side:
    """LaSt's part of a recipe's step alone: forward and backward on tokens as the encoder's last norm leaves them."""
    host, top_k = cfg.model.model, cfg.model.top_k
    num_patches = (host.image_size // host.patch_size) ** 2
    tokens = torch.randn(batch, num_patches, host.hidden_dim, device=numerics.device, requires_grad=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            tokens.grad = None
            last_pool(tokens, top_k).sum().backward()

    return run


class ReleaseNet(nn.Module):
    """The release's classifier: LaSt as its formula stands, a complex FFT differentiated by autograd.

    Args:
        model: torchvision's VisionTransformer.
        top_k: Patches kept per channel.
    """

    def __init__(self, model: nn.Module, top_k: int) -> None:
        super().__init__()
        model.encoder.register_forward_hook(
            lambda _, args, tokens: straightforward_pool(tokens[:, 1:].float(), top_k)[:, None]
        )
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, as detectron2's trainers sum it."""
        return {"loss_ce": F.cross_entropy(self.model(batch["image"]).float(), batch["label"])}


def release_side(cfg: Any, batch: int, numerics: Numerics) -> tuple[Side, Curve]:
    """The release's loop on the same recipe and weights: detectron2's own trainer, AdamW's default, nothing compiled.

    In bfloat16 it is detectron2's AMPTrainer, which the release leaves off.
    """
    torch.manual_seed(0)
    model = ReleaseNet(instantiate(cfg.model.model), cfg.model.top_k).to(numerics.device)
    cfg.optimizer.params.model, cfg.optimizer.fused = model, False
    parts = model, _image_batches(cfg, batch, numerics.device), instantiate(cfg.optimizer)
    if numerics.bf16:
        unscaled = torch.amp.GradScaler(numerics.device.type, enabled=False)
        return _driven(AMPTrainer(*parts, grad_scaler=unscaled, precision=torch.bfloat16))
    return _driven(SimpleTrainer(*parts))


def dino_side(pooling: str, batch: int, numerics: Numerics, *flags: str) -> Side:
    """dino/'s step as main_dino.py builds it from its flags, with synthetic crops of the flags' sizes."""
    options, *_, training = load_track(
        "dino",
        *("dino_options", "dino_augmentation", "dino_backbone", "dino_loss", "dino_optimizers", "multi_crop"),
        *("dino_head", "dino_schedules", "dino_step", "dino_checkpoint", "dino_data", "dino_training"),
    )
    own = ["--pooling", pooling, "--batch_size_per_gpu", str(batch), "--use_fp16", "false"]
    own += ["--bf16", str(numerics.bf16), "--compile", str(numerics.compiled)]
    own += ["--top_k", DINO_TOP_K] * (pooling == "last")
    args = options.parse_options("", [*own, *flags])
    options.check_options(args)
    torch.manual_seed(0)
    step, _ = training.build_step(args, 1, numerics.device)
    sides = [args.global_crop_size] * 2 + [args.local_crop_size] * args.local_crops_number
    crops = [torch.randn(batch, 3, side, side, device=numerics.device) for side in sides]

    def run(steps: int) -> None:
        for _ in range(steps):
            step(crops, 1, 1)  # in the first epoch the last layer stands still

    return run


def _image_batches(cfg: Any, batch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """One random batch for ever, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    size, classes = cfg.model.model.image_size, cfg.model.model.num_classes
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    labels = torch.randint(0, classes, (batch,), generator=generator).to(device)
    return itertools.repeat({"image": images, "label": labels})


def _driven(trainer: SimpleTrainer) -> tuple[Side, Curve]:
    """Steps in detectron2's loop without hooks, in as many pieces as one likes, and their losses so far."""
    trainer.storage, trainer.max_iter = EventStorage(0), 1 << 30

    def run(steps: int) -> None:
        with trainer.storage:
            for _ in range(steps):
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
                trainer.iter += 1

    def curve() -> list[float]:
        if isinstance(trainer, RepeatableSteps):
            trainer.read_losses()  # of the last step
        return [value for value, _ in trainer.storage.histories()["total_loss"].values()]

    return run, curve
