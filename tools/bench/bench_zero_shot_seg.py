"""Time and memory of our zero-shot segmentation against the published order of work, one window at a time.

    python tools/bench/bench_zero_shot_seg.py [--rounds 9] [--threads 2] [--device cuda] [--record]

CLIP ViT-B/16 with random weights at the real sizes: an ADE20K image of 512 x 683 pixels, resized to 336 x 448, windows
of 224 every 112 pixels (2 x 3), 150 names. The plain side is what the published code does for every image: each window
alone through the model, its 150 score maps stretched and padded to the whole image, summed and divided, stretched to
the annotation's size, softmax over all names, maximum and argmax. Ours is clip/zero_shot_segmenter.py, windows of
one image in one batch. Both use the same model and the same text, their labels must agree, and they run in turn. The
forward passes alone are compared, too: that is what batching gives by itself. `labels` is everything behind the forward
passes: up-sampling, argmax and counting for mIoU.
"""

import argparse
from collections.abc import Sequence

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, peak_bytes, ratio
from label_maps import LabelRule
from miou import MeanIoU
from sliding_window import plan_windows
from torch import Tensor
from torch.nn import functional as F
from zero_shot_segmenter import ZeroShotSegmenter

from last_vit.clip_dense import clip_dense_features
from last_vit.clip_models import load_clip

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


@torch.inference_mode()
def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Whole images, their parts, and the labels' memory."""
    device = report.device
    report.describe(
        f"CLIP ViT-B/16, {IMAGE_HW[0]} x {IMAGE_HW[1]} -> {OUTPUT_HW[0]} x {OUTPUT_HW[1]} pixels, {NUM_NAMES} names",
        dataset=f"random image, {IMAGE_HW[0]} x {IMAGE_HW[1]} px",
        n_images=1,
        crop=CROP,
        stride=STRIDE,
        names=NUM_NAMES,
    )
    model = load_clip("ViT-B-16", None, random_seed=0, device=device).model
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
    times = alternate(sides, args.rounds, device)
    plain_labels_times = [whole - part for whole, part in zip(times["plain"], times["plain_forward"], strict=True)]
    windows = "segmenting an image against one window at a time"
    report.add("speedup", windows, ratio(times["plain"], times["ours"]), goal=GOAL_SPEEDUP)
    report.add(
        "speedup_forward",
        "forward passes of an image's windows against one at a time",
        ratio(times["plain_forward"], times["ours_forward"]),
    )
    report.add(
        "speedup_labels",
        "labels of an image against maps of all names",
        ratio(plain_labels_times, times["ours_labels"]),
    )
    share = ratio(times["ours_labels"], times["ours"]).times(100)
    report.add("labels", "labels, part of segmenting an image", share, limit=GOAL_SHARE, unit="%")
    share = ratio(plain_labels_times, times["plain"]).times(100)
    report.add("labels_plain", "labels, part of the plain side's time", share, unit="%")
    peaks = [
        peak_bytes(run, device)[0] for run in (lambda: plain_label_and_count(maps), lambda: label_and_count(found))
    ]
    report.add("labels_memory", "memory of maps of all names over our labels'", peaks[0] / peaks[1])
    report.keep(peak_mib_labels=peaks[1] / 2**20, peak_mib_labels_plain=peaks[0] / 2**20)
    report.keep(different_percent=100 * different)
    print(f"  the labels take {peaks[1] / 2**20:.0f} MiB, plain {peaks[0] / 2**20:.0f}; {different:.4%} of them differ")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    run_bench(BenchParser("bench_zero_shot_seg", __doc__, rounds=2, recorded_rounds=5), bench, argv)


if __name__ == "__main__":
    main()
