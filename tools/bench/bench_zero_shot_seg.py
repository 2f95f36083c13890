"""Time and memory of our zero-shot segmentation against the published order of work, one window at a time.

    python tools/bench/bench_zero_shot_seg.py [--rounds 5] [--threads 1] [--device cuda] [--record]

CLIP ViT-B/16 with random weights at the real sizes: an ADE20K image of 512 x 683 pixels, resized to 336 x 448, windows
of 224 every 112 pixels (2 x 3), 150 names. The plain side is what the published code does for every image: each window
alone through the model, its 150 score maps stretched and padded to the whole image, summed and divided, stretched to
the annotation's size, softmax over all names, maximum and argmax. Ours is last_vit/zero_shot_segmenter.py, windows of
one image in one batch, and for the parts alone. Both use the same model and the same text, their labels must agree, and
they run in this process, in turn. Ratios of medians are printed, never a bare time; on a CPU of this process's CPU
seconds, in which other processes on the machine do not count. The forward passes alone are compared, too: that is what
batching gives by itself. `labels` is everything behind the forward passes: up-sampling, argmax and counting for mIoU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from bench_pooling import peak_bytes
from torch import Tensor
from torch.nn import functional as F

from last_vit.clip_dense import clip_dense_features
from last_vit.clip_models import load_clip
from last_vit.label_maps import LabelRule
from last_vit.metrics.miou import MeanIoU
from last_vit.results import write_result
from last_vit.runtime import describe_device, select_device
from last_vit.sliding_window import plan_windows
from last_vit.zero_shot_segmenter import ZeroShotSegmenter

IMAGE_HW, OUTPUT_HW, PATCH, CROP, STRIDE = (336, 448), (512, 683), 16, 224, 112
NUM_NAMES, EMBED_DIM, SCALE = 150, 512, 40.0
GOAL_SPEEDUP, GOAL_SHARE, MAX_DIFFERENT = 1.5, 20.0, 1e-4


def plain_forward(segmenter: ZeroShotSegmenter, image: Tensor) -> list[Tensor]:
    """Cosines of each window [1, Q, h, w], one window at a time."""
    maps = []
    for window in plan_windows(IMAGE_HW, CROP, STRIDE, PATCH).cut(image):
        features, grid_hw = segmenter.dense(window[None])
        maps.append((F.normalize(features, dim=-1) @ segmenter.text.T).transpose(1, 2).unflatten(2, grid_hw))
    return maps


def plain_labels(maps: list[Tensor], rule: LabelRule) -> Tensor:
    """All names on a canvas, then softmax, maximum, argmax, threshold."""
    plan = plan_windows(IMAGE_HW, CROP, STRIDE, PATCH)
    total, count = maps[0].new_zeros(1, NUM_NAMES, *IMAGE_HW), maps[0].new_zeros(1, 1, *IMAGE_HW)
    corners = [(top, left) for top in plan.rows.starts for left in plan.columns.starts]
    for (top, left), scores in zip(corners, maps, strict=True):
        stretched = F.interpolate(scores, size=(CROP, CROP), mode="bilinear")
        total[:, :, top : top + CROP, left : left + CROP] += stretched
        count[:, :, top : top + CROP, left : left + CROP] += 1
    logits = F.interpolate(total / count, size=OUTPUT_HW, mode="bilinear")[0]
    probabilities = (logits * rule.logit_scale).softmax(dim=0)
    label = probabilities.argmax(dim=0)
    label[probabilities.max(dim=0)[0] < rule.prob_threshold] = 0
    return label


def wait(device: torch.device) -> None:
    """Let a GPU finish what a clock is to count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function per round, called in turn so that drift of the machine hits all alike."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            wait(device)
            if index:  # the first round warms up
                times[name].append(clock() - start)
    return times


def peak_mib(function: Callable[[], object], device: torch.device) -> float:
    """Memory that a call takes on top of what is there, at its worst."""
    if device.type == "cpu":
        return peak_bytes(function)[0] / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


@torch.inference_mode()
def bench(rounds: int, device: torch.device) -> dict[str, float]:
    """All ratios; prints them."""
    model = load_clip("ViT-B-16", None, random_seed=0, device=device).model
    torch.manual_seed(0)
    segmenter = ZeroShotSegmenter(
        dense=lambda windows: clip_dense_features(model, windows),
        text=F.normalize(torch.randn(NUM_NAMES, EMBED_DIM, device=device), dim=1),
        rule=LabelRule(range(NUM_NAMES), SCALE),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        patch_size=PATCH,
        crop=CROP,
        stride=STRIDE,
    )
    image = torch.randn(3, *IMAGE_HW, device=device)
    truth = torch.randint(0, NUM_NAMES, OUTPUT_HW, device=device)
    metric = MeanIoU(NUM_NAMES)
    maps, found = plain_forward(segmenter, image), segmenter.window_scores([image])[0]

    def label_and_count(found: object) -> Tensor:
        label = segmenter.labels(image, found, OUTPUT_HW)
        metric.update(label, truth)
        return label

    def plain_label_and_count(maps: list[Tensor]) -> Tensor:
        label = plain_labels(maps, segmenter.rule)
        metric.update(label, truth)
        return label

    different = (label_and_count(found) != plain_label_and_count(maps)).float().mean().item()
    if different > MAX_DIFFERENT:
        raise RuntimeError(f"the sides do not compute the same: {100 * different:.3f}% of the labels differ")
    sides = {
        "plain": lambda: plain_label_and_count(plain_forward(segmenter, image)),
        "plain_forward": lambda: plain_forward(segmenter, image),
        "ours": lambda: label_and_count(segmenter.window_scores([image])[0]),
        "ours_forward": lambda: segmenter.window_scores([image]),
        "ours_labels": lambda: label_and_count(found),
    }
    times = alternate(sides, rounds, device)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratios = [plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True)]
    metrics = {
        "speedup": medians["plain"] / medians["ours"],
        "speedup_forward": medians["plain_forward"] / medians["ours_forward"],
        "speedup_labels": (medians["plain"] - medians["plain_forward"]) / medians["ours_labels"],
        "labels_percent": 100 * medians["ours_labels"] / medians["ours"],
        "labels_percent_plain": 100 * (1 - medians["plain_forward"] / medians["plain"]),
        "different_percent": 100 * different,
        "peak_mib_labels": peak_mib(lambda: label_and_count(found), device),
        "peak_mib_labels_plain": peak_mib(lambda: plain_label_and_count(maps), device),
    }
    print(
        f"  whole image   {metrics['speedup']:5.2f}x one window at a time (rounds {min(ratios):.2f} to "
        f"{max(ratios):.2f}; goal {GOAL_SPEEDUP}x); {metrics['different_percent']:.4f}% of the labels differ\n"
        f"  forward alone {metrics['speedup_forward']:5.2f}x   labels alone {metrics['speedup_labels']:5.2f}x\n"
        f"  labels take {metrics['labels_percent']:.1f}% of our time (goal {GOAL_SHARE:g}%), "
        f"{metrics['labels_percent_plain']:.1f}% of the plain side's\n"
        f"  peak memory of the labels: {metrics['peak_mib_labels']:.0f} MiB, plain "
        f"{metrics['peak_mib_labels_plain']:.0f} MiB ({NUM_NAMES} maps of {OUTPUT_HW[0]} x {OUTPUT_HW[1]} in float32: "
        f"{4 * NUM_NAMES * OUTPUT_HW[0] * OUTPUT_HW[1] / 2**20:.0f} MiB)"
    )
    return metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed images of each side (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--record", action="store_true", help="write results/bench_zero_shot_seg.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    print(f"CLIP ViT-B/16, {IMAGE_HW} -> {OUTPUT_HW} pixels, {NUM_NAMES} names, {describe_device(device)}")
    start = time.perf_counter()
    metrics = bench(args.rounds, device)
    if args.record:
        write_result(
            "bench_zero_shot_seg",
            metrics,
            n_images=args.rounds,
            dataset=f"random image, {IMAGE_HW[0]} x {IMAGE_HW[1]} px",
            config={"rounds": args.rounds, "crop": CROP, "stride": STRIDE, "names": NUM_NAMES},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


if __name__ == "__main__":
    main()
