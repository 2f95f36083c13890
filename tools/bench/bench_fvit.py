"""Time and memory of a detector's training step over a frozen CLIP against the naive step, and the cost of its text.

    python tools/bench/bench_fvit.py [--arch EVA02-B-16] [--size 640] [--batch 1] [--rounds 3] [--threads 1] [--record]

The naive step is the same detector with a tower that is a part of the model like any other: its parameters ask for
gradients and autograd runs through it, in float32. Ours runs it without autograd in bfloat16, first with float32 heads,
then with the whole step in bfloat16 autocast. All sides have the same weights and see the same image, in this process,
in turn; without bfloat16 their losses must agree. The test step has 1,203 classes, as LVIS; what text costs it is both
softmax classifiers and the fusion, on as many regions as the step has. Ratios of medians are printed, never a bare
time; on a CPU of this process's CPU seconds. Peak memory is what a step needs beyond what is there before it.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from last_vit.class_embeddings import ClassEmbeddings, ClassSplit
from last_vit.results import write_result
from last_vit.runtime import describe_device, select_device

FVIT = Path(__file__).resolve().parents[2] / "ov_detection" / "fvit" / "__init__.py"
GOAL_SPEEDUP, GOAL_TEXT_PERCENT = 1.8, 5.0
CLASSES, OBJECTS = 1203, 8

_spec = importlib.util.spec_from_file_location("fvit", FVIT)  # a package in a script folder, on no path of ours
sys.modules["fvit"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["fvit"])

from fvit.build_fvit import build_fvit  # noqa: E402 (the package is known from here on)
from fvit.frozen_clip import FrozenClip  # noqa: E402
from fvit.fvit_model import FViT  # noqa: E402
from fvit.score_fusion import fuse_scores  # noqa: E402


class ThawedClip(FrozenClip):
    """The tower as it would stand in a model without care: autograd runs through it."""

    def __init__(self, arch: str, random_seed: int) -> None:
        super().__init__(arch, random_seed=random_seed, bf16=False, in_checkpoint=True)
        self.tower.requires_grad_(True)

    forward = FrozenClip.forward.__wrapped__  # without its no_grad


def build_detector(clip: FrozenClip, device: torch.device) -> FViT:
    """OV-COCO's detector with LVIS's number of classes; the same weights at every call."""
    torch.manual_seed(0)
    words = ClassEmbeddings(
        tuple(f"class {place}" for place in range(CLASSES)),
        torch.randn(CLASSES, clip.embed_dim),
        torch.randn(clip.embed_dim),
        "random",
        "none",
    )
    base = torch.arange(CLASSES) < 866
    return build_fvit(clip, words, ClassSplit(base=base, novel=~base), roi_heads={"score_thresh": 1e-4}).to(device)


def draw_samples(batch: int, size: int) -> list[dict]:
    """Noise with boxes of all sizes."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(batch):
        corners = (torch.rand(OBJECTS, 2, 2, generator=generator) * size).sort(dim=1).values
        instances = Instances((size, size))
        instances.gt_boxes = Boxes((corners.flatten(1) + torch.tensor([0, 0, 8, 8])).clamp(max=size))
        instances.gt_classes = torch.randint(866, (OBJECTS,), generator=generator)
        image = torch.rand(3, size, size, generator=generator) * 255
        samples.append({"image": image, "height": size, "width": size, "instances": instances})
    return samples


def training_step(model: FViT, samples: list[dict], device: torch.device, autocast: bool) -> Callable[[], float]:
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


def test_step(model: FViT, samples: list[dict]) -> Callable[[], None]:
    """Detections of the images."""

    @torch.no_grad()
    def run() -> None:
        model.eval()(samples)

    return run


@torch.no_grad()
def text_step(model: FViT, regions: int, device: torch.device) -> Callable[[], None]:
    """Both classifiers and the fusion, as a test step runs them on that many regions."""
    predictor = model.roi_heads.box_predictor
    classifier, generator = predictor.classifier, torch.Generator().manual_seed(3)
    features = torch.randn(2, regions, classifier.width, generator=generator).to(device)

    @torch.no_grad()
    def run() -> None:
        vlm = classifier.cosines(features[1]) * predictor.vlm_temperature
        fuse_scores(classifier(features[0]), vlm, classifier.is_base, **predictor.fusion)

    return run


def alternate(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function per round, called in turn so that drift of the machine hits all alike."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            wait(device)
            start = clock()
            function()
            wait(device)
            if index:  # the first round warms up
                times[name].append(clock() - start)
    return times


def wait(device: torch.device) -> None:
    """Let a GPU finish what a clock is to count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(function: Callable[[], object], device: torch.device) -> float:
    """Most memory that torch holds during a call beyond what it holds before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak / 2**30


def bench(arch: str, size: int, batch: int, rounds: int, device: torch.device) -> dict[str, float]:
    """All ratios; prints them."""
    samples = draw_samples(batch, size)
    exact = training_step(build_detector(FrozenClip(arch, random_seed=0, bf16=False), device), samples, device, False)
    naive_model = build_detector(ThawedClip(arch, 0), device)
    model = build_detector(FrozenClip(arch, random_seed=0), device)
    steps = {
        "naive": training_step(naive_model, samples, device, False),
        "frozen": training_step(model, samples, device, False),
        "frozen_autocast": training_step(model, samples, device, True),
    }
    losses = [exact(), steps["naive"]()]
    if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[1]):
        raise RuntimeError(f"the sides do not compute the same: losses {losses}")
    del exact
    memory = {name: peak_gib(step, device) for name, step in steps.items()}
    times = alternate(steps, rounds, device)
    metrics = {f"peak_gib_{name}": value for name, value in memory.items()}
    for name, words in (("frozen", "float32 heads "), ("frozen_autocast", "bfloat16 heads")):
        ratios = [a / b for a, b in zip(times["naive"], times[name], strict=True)]
        metrics[f"speedup_{name}"] = statistics.median(times["naive"]) / statistics.median(times[name])
        print(
            f"  training, bfloat16 tower, {words} {metrics[f'speedup_{name}']:5.2f}x the naive step (rounds "
            f"{min(ratios):.2f} to {max(ratios):.2f}; goal {GOAL_SPEEDUP}x)   peak {memory[name]:.2f} GiB, naive "
            f"{memory['naive']:.2f}"
        )
    regions = model.proposal_generator.post_nms_topk[False] * batch
    tests = {"test": test_step(model, samples), "text": text_step(model, regions, device)}
    times = alternate(tests, rounds, device)
    metrics["text_percent"] = 100 * statistics.median(times["text"]) / statistics.median(times["test"])
    metrics["peak_gib_test"] = peak_gib(tests["test"], device)
    print(
        f"  test, {CLASSES} classes, {regions} regions: text and fusion {metrics['text_percent']:.2f}% of the step "
        f"(goal {GOAL_TEXT_PERCENT}%)   peak {metrics['peak_gib_test']:.2f} GiB"
    )
    return metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="EVA02-B-16", help="open_clip architecture, random weights (EVA02-B-16)")
    parser.add_argument("--size", type=int, default=640, help="side of the square images (default 640)")
    parser.add_argument("--batch", type=int, default=1, help="images per step (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--record", action="store_true", help="write results/bench_fvit.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    print(f"{args.arch} at {args.size} pixels, {args.batch} images per step, {describe_device(device)}")
    start = time.perf_counter()
    metrics = bench(args.arch, args.size, args.batch, args.rounds, device)
    if args.record:
        write_result(
            "bench_fvit",
            metrics,
            n_images=args.batch,
            dataset=f"random images, {args.size} px",
            config={"arch": args.arch, "batch": args.batch, "rounds": args.rounds, "classes": CLASSES},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


if __name__ == "__main__":
    main()
