"""Time of our DINO training step against a plain version of DINO's, and what LaSt adds to it.

    python tools/bench/bench_dino.py [--batch 1] [--rounds 5] [--threads 1] [--device cuda] [--record]

The plain version is the step as one would first write it: softmax attention spelt out, one pass of backbone and head
per crop size, the loss pair by pair, and Python loops over the tensors for clipping, optimizer and the teacher's
average. Both sides train ViT-S/16 with 2 crops of 224 and 8 of 96 pixels and 65,536 prototypes, from the same weights
on the same images, in this process, in turn; their first losses must agree. Ratios of medians are printed, never a bare
time; on a CPU of this process's CPU seconds, in which other processes on the machine do not count. LaSt's cost is its
forward and backward passes over a step's tokens, alone, against the whole step.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.dino_vit import build_dino_vit
from last_vit.pooling import last_pool
from last_vit.results import write_result
from last_vit.runtime import describe_device, select_device

DINO = Path(__file__).resolve().parents[2] / "dino"
GOAL_SPEEDUP, GOAL_LAST_PERCENT, TOP_K = 1.3, 3.0, 0.25
OUT_DIM, NUM_LOCAL = 65536, 8
LR, WEIGHT_DECAY, MOMENTUM, TEMP, CLIP = 1e-5, 0.04, 0.996, 0.04, 3.0


def load_track(*names: str) -> list[ModuleType]:
    """Modules of dino/, a script folder that is on no path of ours; each after those that it imports."""
    for name in names:
        spec = importlib.util.spec_from_file_location(name, DINO / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return [sys.modules[name] for name in names]


dino_loss, dino_optimizers, multi_crop, dino_head, dino_step = load_track(
    "dino_loss", "dino_optimizers", "multi_crop", "dino_head", "dino_step"
)


def build_networks(device: torch.device) -> list[nn.Module]:
    """Student and teacher with the same weights, the same at every call."""
    torch.manual_seed(0)
    networks = [
        multi_crop.MultiCrop(build_dino_vit("vit_small", 16, drop_path_rate=rate), dino_head.DinoHead(384, OUT_DIM))
        for rate in (0.1, 0.0)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    return [network.to(device) for network in networks]


def our_step(device: torch.device, dtype: torch.dtype) -> Callable[[list[Tensor]], float]:
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
        sum(last_pool(tokens, TOP_K).sum() for tokens in student).backward()
        wait(device)

    return run


def wait(device: torch.device) -> None:
    """Let a GPU finish what a clock is to count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(functions: list[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each function per round, called in turn so that drift of the machine hits all alike."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = clock()
            function()
            wait(device)
            if index:  # the first round warms up
                seconds.append(clock() - start)
    return times


def bench(batch: int, rounds: int, device: torch.device) -> dict[str, float]:
    """All ratios; prints them."""
    torch.manual_seed(1)
    crops = [torch.randn(batch, 3, side, side, device=device) for side in (224,) * 2 + (96,) * NUM_LOCAL]
    metrics: dict[str, float] = {}
    medians: dict[torch.dtype, list[float]] = {}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        name = str(dtype).removeprefix("torch.")
        sides = [plain_step(device, dtype), our_step(device, dtype)]
        losses = [side(crops) for side in sides]
        if abs(losses[0] - losses[1]) > tolerance:
            raise RuntimeError(f"the sides do not compute the same ({name}): losses {losses}")
        functions = [lambda side=side: side(crops) for side in sides]
        times = alternate([*functions, pooling_step(batch, device)], rounds, device)
        medians[dtype] = plain, ours, pooling = [statistics.median(seconds) for seconds in times]
        ratios = [a / b for a, b in zip(times[0], times[1], strict=True)]
        metrics[f"speedup_{name}"], metrics[f"last_percent_{name}"] = plain / ours, 100 * pooling / (ours + pooling)
        print(
            f"  {name:9s} {plain / ours:5.2f}x the plain step (rounds {min(ratios):.2f} to {max(ratios):.2f}; goal "
            f"{GOAL_SPEEDUP}x)   LaSt's share of a step {metrics[f'last_percent_{name}']:.2f}% (goal "
            f"{GOAL_LAST_PERCENT}%)"
        )
    metrics["bfloat16_over_float32"] = medians[torch.float32][1] / medians[torch.bfloat16][1]
    print(f"  our step in bfloat16: {metrics['bfloat16_over_float32']:.2f}x as fast as in float32")
    return metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="images per step (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--record", action="store_true", help="write results/bench_dino.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    print(f"ViT-S/16, 2 x 224 + {NUM_LOCAL} x 96 pixels, {args.batch} images per step, {describe_device(device)}")
    start = time.perf_counter()
    metrics = bench(args.batch, args.rounds, device)
    if args.record:
        write_result(
            "bench_dino",
            metrics,
            n_images=args.batch,
            dataset=f"random crops, 2 x 224 + {NUM_LOCAL} x 96 px",
            config={"batch": args.batch, "rounds": args.rounds, "top_k": TOP_K, "out_dim": OUT_DIM},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


if __name__ == "__main__":
    main()
