"""Time and memory of a detector's training step over a frozen CLIP against the naive step.

The naive step is the same detector with a tower that is a part of the model like any other: its parameters ask for
gradients and autograd runs through it, in float32. Ours runs it without autograd in bfloat16, first with float32 heads,
then with the whole step in bfloat16 autocast. All sides have the same weights and see the same image, in turn; without
bfloat16 their losses must agree. There are 1,203 classes, as in LVIS. Peak memory is what a step needs beyond what is
there before it.

Then coco/coco_mini.py's step (ViT-Ti, boxes and masks) with its backbone frozen and every image's features known,
against the same heads with the backbone in training.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from bench_report import BenchReport, alternate, peak_bytes, ratio
from class_embeddings import ClassEmbeddings
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from fvit.frozen_clip import FrozenClip
from fvit.fvit_layers import SquareDetector
from fvit.fvit_model import build_fvit

from last_vit.lazy_config import build_model, read_config

GOAL_SPEEDUP, GOAL_PROBE = 1.8, 5.0
PROBE = Path(__file__).resolve().parents[2] / "ov_detection" / "configs" / "coco" / "coco_mini.py"
CLASSES, OBJECTS, REGIONS, ARCH = 1203, 8, 512, "EVA02-B-16"


class ThawedClip(FrozenClip):
    """The tower as it would stand in a model without care: autograd runs through it."""

    def __init__(self, arch: str, random_seed: int) -> None:
        super().__init__(arch, random_seed=random_seed, bf16=False, in_checkpoint=True)
        self.tower.requires_grad_(True)

    forward = FrozenClip.forward.__wrapped__  # without its no_grad


def build_detector(clip: FrozenClip, regions: int, device: torch.device) -> SquareDetector:
    """OV-COCO's detector with LVIS's number of classes; the same weights at every call."""
    torch.manual_seed(0)
    words = ClassEmbeddings(
        tuple(f"class {place}" for place in range(CLASSES)),
        torch.randn(CLASSES, clip.embed_dim),
        torch.randn(clip.embed_dim),
        "random",
        "none",
    )
    heads = {"score_thresh": 1e-4, "batch_size_per_image": regions}
    return build_fvit(clip, words, torch.arange(CLASSES) < 866, roi_heads=heads).to(device)


def draw_samples(batch: int, size: int, classes: int = 866) -> list[dict]:
    """Noise with boxes of all sizes, which are their own masks."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(batch):
        corners = (torch.rand(OBJECTS, 2, 2, generator=generator) * size).sort(dim=1).values
        instances = Instances((size, size))
        instances.gt_boxes = Boxes((corners.flatten(1) + torch.tensor([0, 0, 8, 8])).clamp(max=size))
        instances.gt_classes = torch.randint(classes, (OBJECTS,), generator=generator)
        masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, instances.gt_boxes.tensor.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.rand(3, size, size, generator=generator) * 255
        samples.append({"image": image, "height": size, "width": size, "instances": instances})
    return samples


def training_step(
    model: SquareDetector, samples: list[dict], device: torch.device, autocast: bool
) -> Callable[[], float]:
    """Forward, backward and update; returns the loss."""
    mine = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.clip.")]
    optimizer = torch.optim.AdamW((parameter for parameter in mine if parameter.requires_grad), lr=1e-5)

    def run() -> float:
        torch.manual_seed(2)
        model.train()
        with EventStorage(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = sum(model(samples).values())
        loss.backward()
        optimizer.step()
        model.zero_grad()
        return loss.item()

    return run


def bench_probe(report: BenchReport) -> None:
    """A probe's step on features that are there against a step that trains the backbone."""
    init = ["model.init=timm:vit_tiny_patch16_224@random"]
    steps = {}
    for name, frozen in (("trained", False), ("probe", True)):
        cfg = read_config(str(PROBE), [*init, f"model.frozen={frozen}"], "")
        model = build_model({**cfg.model, "names": [str(label) for label in range(80)]}).to(report.device)
        samples = draw_samples(cfg.dataloader.train.batch_size, cfg.model.square_size, 80)
        steps[name] = training_step(model, samples, report.device, False)
    times = alternate(steps, report.size(5, 15), report.device)
    words = "training step of the heads on cached features against one with the ViT-Ti in it"
    report.add("speedup_probe", words, ratio(times["trained"], times["probe"]), goal=GOAL_PROBE)


def bench(report: BenchReport) -> None:
    """Our two steps against the naive one."""
    device, size = report.device, report.size(320, 640)
    report.describe(f"F-ViT on {ARCH} at {size} pixels", dataset=f"random images, {size} px", n_images=1)
    bench_probe(report)
    samples = draw_samples(1, size)
    exact = training_step(
        build_detector(FrozenClip(ARCH, random_seed=0, bf16=False), REGIONS, device), samples, device, False
    )()
    model = build_detector(FrozenClip(ARCH, random_seed=0), REGIONS, device)
    steps = {
        "naive": training_step(build_detector(ThawedClip(ARCH, 0), REGIONS, device), samples, device, False),
        "frozen": training_step(model, samples, device, False),
        "frozen_autocast": training_step(model, samples, device, True),
    }
    plain = steps["naive"]()
    if abs(exact - plain) > 1e-3 * abs(plain):
        raise RuntimeError(f"the sides do not compute the same: losses {exact} and {plain}")
    times = alternate(steps, report.size(1, 3), device)
    memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    for name, heads in (("frozen", "float32"), ("frozen_autocast", "bfloat16")):
        speedup = ratio(times["naive"], times[name])
        report.add(f"speedup_{name}", f"detector's step against a naive one, {heads} heads", speedup, goal=GOAL_SPEEDUP)
        words = f"memory of a naive detector step over ours, {heads} heads"
        report.add(f"memory_{name}", words, memory["naive"] / memory[name])
