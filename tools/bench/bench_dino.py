"""Time of our DINO training step against a plain version of DINO's, and what LaSt adds to it.

The plain version is the step as one would first write it: softmax attention spelt out, one pass of backbone and head
per crop size, the loss pair by pair, and Python loops over the tensors for clipping, optimizer and the teacher's
average. Both sides train ViT-S/16 with 2 crops of 224 and 8 of 96 pixels and 65,536 prototypes, from the same weights
on the same images, in turn; their first losses must agree. LaSt's cost is its forward and backward passes over a step's
tokens, alone, against the whole step.
"""

from collections.abc import Callable

import dino_head
import dino_loss
import dino_optimizers
import dino_step
import numpy as np
import torch
from bench_report import BenchReport, alternate, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.dino_vit import build_dino_vit
from last_vit.pooling import last_pool

GOAL_SPEEDUP, GOAL_LAST_PERCENT, TOP_K = 1.3, 3.0, 0.25
OUT_DIM, NUM_LOCAL = 65536, 8
LR, WEIGHT_DECAY, MOMENTUM, TEMP, CLIP = 1e-5, 0.04, 0.996, 0.04, 3.0


def build_networks(device: torch.device) -> list[nn.Module]:
    """Student and teacher with the same weights, the same at every call."""
    torch.manual_seed(0)
    networks = [
        dino_head.MultiCrop(build_dino_vit("vit_small", 16, drop_path_rate=rate), dino_head.DinoHead(384, OUT_DIM))
        for rate in (0.1, 0.0)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    return [network.to(device) for network in networks]


def our_step(device: torch.device, dtype: torch.dtype) -> Callable[[list[Tensor]], float | Tensor]:
    """dino/dino_step.py; returns the loss."""
    student, teacher = build_networks(device)
    constant = {"lr": LR, "weight_decay": WEIGHT_DECAY, "teacher_momentum": MOMENTUM, "teacher_temp": TEMP}
    step = dino_step.DinoStep(
        student,
        teacher,
        dino_loss.DinoLoss(OUT_DIM, 2 + NUM_LOCAL).to(device),
        dino_optimizers.build_optimizer("adamw", dino_optimizers.parameter_groups(student)),
        dino_step.Schedules(**{name: np.full(1, value) for name, value in constant.items()}),
        clip_grad=CLIP,
        freeze_last_layer=0,
        dtype=dtype,
    )
    return lambda crops: step(crops, 0, 0)["loss"]


def plain_step(device: torch.device, dtype: torch.dtype) -> Callable[[list[Tensor]], float]:
    """The plain version; returns the loss."""
    student, teacher = build_networks(device)
    teacher.requires_grad_(False)
    for network in (student, teacher):
        for block in network.backbone.blocks:
            block.attn.fused_attn = False  # timm's softmax(q k) v, operation by operation
    groups = dino_optimizers.parameter_groups(student)
    optimizer = torch.optim.AdamW(groups, lr=LR)
    optimizer.param_groups[0]["weight_decay"] = WEIGHT_DECAY
    center = torch.zeros(1, OUT_DIM, device=device)

    def forward(network: nn.Module, crops: list[Tensor]) -> Tensor:
        sizes = sorted({crop.shape[-1] for crop in crops}, reverse=True)
        return torch.cat(
            [
                network.head(network.backbone(torch.cat([crop for crop in crops if crop.shape[-1] == size])))
                for size in sizes
            ]
        )

    def run(crops: list[Tensor]) -> float:
        torch.manual_seed(0)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            teacher_logits = forward(teacher, crops[:2])
            student_views = (forward(student, crops) / 0.1).chunk(len(crops))
            targets = F.softmax((teacher_logits - center) / TEMP, dim=-1).detach().chunk(2)
            terms = [
                torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
                for i, target in enumerate(targets)
                for v, view in enumerate(student_views)
                if v != i
            ]
            loss = sum(terms) / len(terms)
        center.mul_(0.9).add_(teacher_logits.float().mean(dim=0, keepdim=True), alpha=0.1)
        optimizer.zero_grad()
        loss.backward()
        for parameter in student.parameters():
            if parameter.grad is not None:
                share = CLIP / (parameter.grad.norm() + 1e-6)
                if share < 1:
                    parameter.grad.mul_(share)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.mul_(MOMENTUM).add_((1 - MOMENTUM) * theirs)
        return loss.item()

    return run


def pooling_step(batch: int, device: torch.device) -> Callable[[], None]:
    """LaSt's part of one step: forward and backward for the student's crops, forward for the teacher's."""
    large, small = (torch.randn(n * batch, p, 384, device=device) for n, p in ((2, 196), (NUM_LOCAL, 36)))
    student = [tokens.clone().requires_grad_() for tokens in (large, small)]

    def run() -> None:
        with torch.no_grad():
            last_pool(large, TOP_K)
        torch.autograd.grad(sum(last_pool(tokens, TOP_K).sum() for tokens in student), student)

    return run


def bench(report: BenchReport) -> None:
    """Both precisions."""
    device, batch = report.device, report.size(1, 1, on_gpu=64)
    words = f"crops, 2 x 224 + {NUM_LOCAL} x 96 px"
    report.describe(f"DINO, ViT-S/16, {words}, {batch} image(s) per step", dataset=f"random {words}", n_images=batch)
    crops = [torch.randn(batch, 3, side, side, device=device) for side in (224,) * 2 + (96,) * NUM_LOCAL]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        name = str(dtype).removeprefix("torch.")
        sides = {"plain": plain_step(device, dtype), "ours": our_step(device, dtype)}
        losses = [float(side(crops)) for side in sides.values()]
        if abs(losses[0] - losses[1]) > tolerance:
            raise RuntimeError(f"the sides do not compute the same ({name}): losses {losses}")
        functions = {each: lambda side=side: side(crops) for each, side in sides.items()}
        times = alternate({**functions, "last": pooling_step(batch, device)}, report.size(1, 3), device)
        goal = GOAL_SPEEDUP if dtype == torch.float32 else None
        speedup = ratio(times["plain"], times["ours"])
        report.add(f"speedup_{name}", f"DINO step against a plain one, {name}", speedup, goal)
        with_last = [ours + last for ours, last in zip(times["ours"], times["last"], strict=True)]
        share = ratio(times["last"], with_last).times(100)
        report.add(f"last_{name}", f"LaSt's part of a DINO step, {name}", share, limit=GOAL_LAST_PERCENT, unit="%")
