"""Time and memory of a detector's training step over a frozen CLIP against the naive step, and the cost of its text.

    python tools/bench/bench_fvit.py [--arch EVA02-B-16] [--size 640] [--rounds 3] [--device cuda] [--record]

The naive step is the same detector with a tower that is a part of the model like any other: its parameters ask for
gradients and autograd runs through it, in float32. Ours runs it without autograd in bfloat16, first with float32 heads,
then with the whole step in bfloat16 autocast. All sides have the same weights and see the same image, in turn; without
bfloat16 their losses must agree. The test step has 1,203 classes, as LVIS; what text costs it is both softmax
classifiers and the fusion, on as many regions as the step has. Peak memory is what a step needs beyond what is there
before it. The goals are stated for 640 pixels and 512 regions per image.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, peak_bytes, ratio
from bench_tracks import load_track
from class_embeddings import ClassEmbeddings, ClassSplit
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

GOAL_SPEEDUP, GOAL_TEXT_PERCENT = 1.8, 5.0
CLASSES, OBJECTS = 1203, 8

load_track("ov_detection", "fvit")

from fvit.box_predictor import fuse_scores  # noqa: E402 (the package is known from here on)
from fvit.frozen_clip import FrozenClip  # noqa: E402
from fvit.fvit_model import FViT, build_fvit  # noqa: E402


class ThawedClip(FrozenClip):
    """The tower as it would stand in a model without care: autograd runs through it."""

    def __init__(self, arch: str, random_seed: int) -> None:
        super().__init__(arch, random_seed=random_seed, bf16=False, in_checkpoint=True)
        self.tower.requires_grad_(True)

    forward = FrozenClip.forward.__wrapped__  # without its no_grad


def build_detector(clip: FrozenClip, regions: int, device: torch.device) -> FViT:
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
    heads = {"score_thresh": 1e-4, "batch_size_per_image": regions}
    return build_fvit(clip, words, ClassSplit(base=base, novel=~base), roi_heads=heads).to(device)


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


def bench_training(model: FViT, args: argparse.Namespace, report: BenchReport, samples: list[dict]) -> None:
    """Our two steps against the naive one."""
    device = report.device
    exact_model = build_detector(FrozenClip(args.arch, random_seed=0, bf16=False), args.regions, device)
    exact = training_step(exact_model, samples, device, False)()
    del exact_model
    naive = build_detector(ThawedClip(args.arch, 0), args.regions, device)
    steps = {
        "naive": training_step(naive, samples, device, False),
        "frozen": training_step(model, samples, device, False),
        "frozen_autocast": training_step(model, samples, device, True),
    }
    plain = steps["naive"]()
    if abs(exact - plain) > 1e-3 * abs(plain):
        raise RuntimeError(f"the sides do not compute the same: losses {exact} and {plain}")
    times = alternate(steps, args.rounds, device)
    memory = {name: peak_bytes(step, device)[0] for name, step in steps.items()}
    for name, heads in (("frozen", "float32"), ("frozen_autocast", "bfloat16")):
        words = f"detector's step against a naive one, {heads} heads"
        report.add(f"speedup_{name}", words, ratio(times["naive"], times[name]), goal=GOAL_SPEEDUP)
        report.add(
            f"memory_{name}",
            f"memory of a naive detector step over ours, {heads} heads",
            memory["naive"] / memory[name],
        )
    report.keep(**{f"peak_gib_{name}": peak / 2**30 for name, peak in memory.items()})
    print("  a step takes " + ", ".join(f"{peak / 2**30:.2f} GiB ({name})" for name, peak in memory.items()))


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Training and test."""
    report.describe(
        f"F-ViT on {args.arch} at {args.size} pixels, {args.batch} image(s) per step",
        dataset=f"random images, {args.size} px",
        n_images=args.batch,
        classes=CLASSES,
    )
    samples = draw_samples(args.batch, args.size)
    model = build_detector(FrozenClip(args.arch, random_seed=0), args.regions, report.device)
    bench_training(model, args, report, samples)
    regions = model.proposal_generator.post_nms_topk[False] * args.batch
    tests = {"test": test_step(model, samples), "text": text_step(model, regions, report.device)}
    times = alternate(tests, args.rounds, report.device)
    words = f"text and fusion of {CLASSES:,} classes, part of a test step"
    report.add("text", words, ratio(times["text"], times["test"]).times(100), limit=GOAL_TEXT_PERCENT, unit="%")
    report.keep(peak_gib_test=peak_bytes(tests["test"], report.device)[0] / 2**30)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_fvit", __doc__, rounds=2, recorded_rounds=3)
    parser.add_argument("--arch", default="EVA02-B-16", help="open_clip architecture, random weights (EVA02-B-16)")
    parser.add_size("--size", 224, 640, "side of the square images", for_goal=True)
    parser.add_size("--regions", 128, 512, "regions of an image in a training step", for_goal=True)
    parser.add_size("--batch", 1, 1, "images per step", on_gpu=4)
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
