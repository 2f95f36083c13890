"""A training step of cls_pretrain with LaSt against the same with CLS, and against the release's loop.

Our sides are cls_pretrain's own trainer on the recipe of ViT-S/16, on a batch that is on the device before the clock
starts, so models and trainers are measured and no loader is. The release's loop is detectron2's SimpleTrainer on the
same model and weights with LaSt as the release wrote it: a complex FFT differentiated by autograd, a wait for the loss
in every step, AdamW's default. After one step its loss must be ours. On a GPU ours is in bfloat16 and compiled, and the
images per second are reported. On a CPU, with two images per step, much of a step is the optimizer's.
"""

import itertools
import statistics
from typing import Any

import torch
from bench_pooling import straightforward_pool
from bench_report import BenchReport, Ratio, alternate, ratio
from cls_training import ClsTrainer
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from run_all import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.lazy_config import read_config
from last_vit.pooling import last_pool

LIMIT_LAST_PERCENT, GOAL_OVER_RELEASE = 2.0, 1.0


class ReleaseNet(nn.Module):
    """The release's classifier: LaSt as its formula stands, differentiated by autograd."""

    def __init__(self, model: nn.Module, top_k: int) -> None:
        super().__init__()
        model.encoder.register_forward_hook(
            lambda _, args, tokens: straightforward_pool(tokens[:, 1:].float(), top_k)[:, None]
        )
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, as detectron2's trainers sum it."""
        return {"loss_ce": F.cross_entropy(self.model(batch["image"]).float(), batch["label"])}


class Side:
    """One trainer in detectron2's loop without hooks; a call is one step."""

    def __init__(self, trainer: SimpleTrainer) -> None:
        self.trainer = trainer
        trainer.storage, trainer.max_iter = EventStorage(0), 1 << 30

    def __call__(self) -> None:
        """One step."""
        with self.trainer.storage:
            self.trainer.before_step()
            self.trainer.run_step()
            self.trainer.after_step()
            self.trainer.iter += 1

    def losses(self) -> list[float]:
        """Of the steps so far."""
        if isinstance(self.trainer, ClsTrainer):
            self.trainer.read_losses()  # of the last step
        return [value for value, _ in self.trainer.storage.histories()["total_loss"].values()]


def build(pool: str, recipe: str, option: str, batch: dict, device: torch.device, released: bool = False) -> Side:
    """A trainer on a recipe with a read-out, from seed 0."""
    config = str(ROOT / "cls_pretrain" / "configs" / f"{recipe}.py")
    cfg: Any = read_config(config, [f"model.pool={pool}", option], "cls_pretrain/configs/")
    torch.manual_seed(0)
    model = ReleaseNet(instantiate(cfg.model.model), cfg.model.top_k) if released else instantiate(cfg.model)
    cfg.optimizer.params.model = model.to(device)
    loader, on_gpu = itertools.repeat(batch), device.type == "cuda"
    if released:
        cfg.optimizer.fused = False
        return Side(SimpleTrainer(model, loader, instantiate(cfg.optimizer)))
    if on_gpu:
        model.compile()
    trainer = ClsTrainer(model=model, data_loader=loader, optimizer=instantiate(cfg.optimizer), bf16=on_gpu)
    trainer.read_periods = (cfg.train.log_period,)
    return Side(trainer)


def bench(report: BenchReport) -> None:
    """CLS, LaSt, LaSt alone, the release."""
    device, size, number = report.device, report.size(128, 224, on_gpu=224), report.size(2, 2, on_gpu=256)
    report.describe(f"ViT-S/16, {number} images per step", dataset=f"random images, {size} px", n_images=number)
    seeded = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randn(number, 3, size, size, generator=seeded).to(device),
        "label": torch.randint(0, 1000, (number,), generator=seeded).to(device),
    }
    recipe = "vits16_in1k", f"model.model.image_size={size}"
    sides = {pool: build(pool, *recipe, batch, device) for pool in ("cls", "last")}
    sides["release"] = build("last", *recipe, batch, device, released=True)
    losses = {}
    for name, side in sides.items():
        side()
        side()
        losses[name] = side.losses()[1]  # the first is that of a head of zeros, whatever it reads
    if not abs(losses["release"] - losses["last"]) <= (5e-2 if device.type == "cuda" else 1e-3):
        raise RuntimeError(f"the release's loop does not compute what ours does, losses after one step {losses}")
    tokens = torch.randn(number, (size // 16) ** 2, 384, device=device, requires_grad=True)
    alone = {"alone": lambda: torch.autograd.grad(last_pool(tokens, 7).sum(), tokens)}
    recipe = "finetune_vit_tiny", "model.init=timm:vit_tiny_patch16_224@random"
    small = {"image": torch.randn(16, 3, 112, 112, device=device), "label": torch.arange(16, device=device)}
    tuned = {f"tuned_{pool}": build(pool, *recipe, small, device) for pool in ("cls", "last")}
    times = alternate({**sides, **alone, **tuned}, report.size(3, 7), device)
    words = "ViT-S/16: LaSt alone, part of a step with CLS"
    share = ratio(times["alone"], times["cls"]).times(100)
    report.add("last_percent", words, share, limit=LIMIT_LAST_PERCENT, unit="%")
    report.add("last_over_cls", "ViT-S/16: step with LaSt over CLS", ratio(times["last"], times["cls"]))
    tuning, words = ratio(times["tuned_last"], times["tuned_cls"]), "ViT-Ti/16 fine-tuned at 112 px: LaSt over CLS"
    report.add("tuned_last_over_cls", words, tuning, limit=1.02)
    over = ratio(times["release"], times["last"])
    report.add("over_release", "ViT-S/16: our step against the release's", over, goal=GOAL_OVER_RELEASE)
    if device.type == "cuda":
        rate = Ratio(*(number / choose(times["last"]) for choose in (statistics.median, max, min)))
        report.add("rate", "ViT-S/16 with LaSt", rate, unit="images/s")
