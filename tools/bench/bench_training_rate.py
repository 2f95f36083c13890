"""Images per second and FLOP utilisation of the training tracks; LaSt against CLS, and against the release's loop.

    python tools/bench/bench_training_rate.py [--tracks ...] [--steps 10] [--device cuda] [--record]
    python tools/bench/bench_training_rate.py --device cpu [--batch 2] [--image-size 224]

On a GPU: ViT-S/16 and ViT-B/16 by cls_pretrain's recipes, DINO's ViT-S/16 with 2 crops of 224 and 8 of 96 pixels, and
open_clip's ViT-B-16, each by its track's own trainer in bfloat16 with its own compile switch, on a batch that lies on
the GPU. A rate counts images (for CLIP pairs, for DINO source images) over whole steps: forward, backward, checks,
optimizer. Utilisation is model FLOPs (bench_flops.py) per second over the GPU's dense bfloat16 peak; beside it stands
what a large matrix product reaches in the same run.

The release's loop is detectron2's SimpleTrainer on the same model and weights with LaSt as the release wrote it: a
complex FFT differentiated by autograd, a wait for the loss in every step, AdamW's default, no compile, in float32 as
released and under bfloat16 autocast. After one step its loss must be ours.

On a CPU: one model of cls_pretrain in float32, not compiled, ratios only. They say nothing about a GPU: with two images
per step much of a step is the optimizer's, and most of the gain over the release's loop is that AdamW is fused.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from bench_flops import count_flops, measured_tflops, peak_tflops
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import Ratio, alternate, ratio
from bench_train_steps import Numerics, Side, cls_side, dino_side, pooling_side, read_recipe, release_side

from last_vit.command_line import positive

# Track -> images per step on a GPU: those of the recipes, but for cls_pretrain half of them, because a step of the
# release's loop in float32 would take most of the memory.
TRACKS = {"cls_pretrain_ViT-S/16": 256, "cls_pretrain_ViT-B/16": 256, "dino_ViT-S/16": 64, "clip_ViT-B/16": 672}
RECIPES = {"cls_pretrain_ViT-S/16": "vits16_in1k", "cls_pretrain_ViT-B/16": "vitb16_in1k"}
RELEASES = {"release": "the release's in float32", "release_bf16": "the release's under bfloat16 autocast"}
LIMIT_LAST_PERCENT, GOAL_OVER_RELEASE = 2.0, 1.0
_TOLERANCE = {False: 1e-3, True: 5e-2}  # of losses after one step, in float32 and in bfloat16


def build_sides(track: str, args: argparse.Namespace, numerics: Numerics) -> dict[str, Side]:
    """The sides of a track: "cls", "last"; of cls_pretrain also "alone", LaSt's part of a step, and the release's loop.

    Args:
        track: One of `TRACKS`.
        args: With batch and image_size.
        numerics: Of our own sides.

    Raises:
        RuntimeError: The release's loop does not compute what ours does.
    """
    batch = batch_of(track, args)
    if track == "dino_ViT-S/16":
        return {pooling: dino_side(pooling, batch, numerics) for pooling in ("cls", "last")}
    if track == "clip_ViT-B/16":
        from bench_clip_steps import clip_side

        return {pooling: clip_side("ViT-B-16", pooling, batch, numerics) for pooling in ("cls", "last")}

    def recipe(pool: str) -> object:
        return read_recipe(RECIPES[track], pool, args.image_size)

    built = {pool: cls_side(recipe(pool), batch, numerics) for pool in ("cls", "last")}
    plain = replace(numerics, compiled=False)
    built["release"] = release_side(recipe("last"), batch, replace(plain, bf16=False))
    if numerics.bf16:
        built["release_bf16"] = release_side(recipe("last"), batch, plain)
    losses = {}
    for name, (side, curve) in built.items():
        side(2)
        losses[name] = curve()[1]  # the first is that of a head of zeros, whatever it reads
    for name in sorted(set(losses) - {"cls", "last"}):
        if not abs(losses[name] - losses["last"]) <= _TOLERANCE[numerics.bf16]:
            raise RuntimeError(f"{track}: {name} does not compute what ours does, losses after one step {losses}")
    return {"alone": pooling_side(recipe("last"), batch, numerics)} | {name: side for name, (side, _) in built.items()}


def batch_of(track: str, args: argparse.Namespace) -> int:
    """Images per step: --batch, or the track's own."""
    return args.batch or TRACKS[track]


def flops_per_image(track: str, args: argparse.Namespace, device: torch.device) -> float:
    """Model FLOPs of a step over its images, counted on a small step without compile; CLS and LaSt have the same."""
    small = argparse.Namespace(**{**vars(args), "batch": 2})
    numerics = Numerics(device)
    if track in RECIPES:
        side, _ = cls_side(read_recipe(RECIPES[track], "cls", args.image_size), small.batch, numerics)
    else:
        side = build_sides(track, small, numerics)["cls"]
    return count_flops(lambda: side(1)) / small.batch


def rate_of(seconds: Sequence[float], images: int) -> Ratio:
    """Images per second, and the slowest and fastest round."""
    return Ratio(images / statistics.median(seconds), images / max(seconds), images / min(seconds))


def bench_track(track: str, args: argparse.Namespace, report: BenchReport, numerics: Numerics) -> None:
    """All of one track: rates on a GPU, ratios everywhere."""
    sides, images = build_sides(track, args, numerics), args.steps * batch_of(track, args)
    calls: dict[str, Callable[[], None]] = {name: lambda side=side: side(args.steps) for name, side in sides.items()}
    # the release apart: who follows a step that frees much memory has more to do
    ours = {name: call for name, call in calls.items() if name not in RELEASES}
    times, on_gpu = alternate(ours, args.rounds, report.device), report.device.type == "cuda"
    report.add(
        f"last_over_cls_{track}",
        f"{track}: step with LaSt over CLS",
        ratio(times["last"], times["cls"]),
        limit=1 + LIMIT_LAST_PERCENT / 100 if on_gpu else None,  # a CPU's noise is larger
    )
    if "alone" in times:
        share = ratio(times.pop("alone"), times["cls"]).times(100)
        words = f"{track}: LaSt alone, part of a step with CLS"
        report.add(f"last_percent_{track}", words, share, limit=LIMIT_LAST_PERCENT, unit="%")
    for name in sorted(set(sides) & set(RELEASES)):
        pair = alternate({each: calls[each] for each in (name, "last")}, args.rounds, report.device)
        gain, times[name] = ratio(pair[name], pair["last"]), pair[name]
        report.add(f"over_{name}_{track}", f"{track}: our step against {RELEASES[name]}", gain, goal=GOAL_OVER_RELEASE)
    if on_gpu:
        report_rates(track, args, report, {name: rate_of(each, images) for name, each in times.items()})


def report_rates(track: str, args: argparse.Namespace, report: BenchReport, rates: dict[str, Ratio]) -> None:
    """Images/s of LaSt under the track's own name, of the others behind it; and the utilisation of LaSt's."""
    report.add(track, f"{track} with LaSt", rates["last"], unit="images/s")
    report.keep(**{f"{track}_{name}": rate.median for name, rate in rates.items() if name != "last"})
    flops = flops_per_image(track, args, report.device)
    report.keep(**{f"gflops_per_image_{track}": flops / 1e9})
    peak = args.peak_tflops or peak_tflops(torch.cuda.get_device_name(report.device))
    if peak is None:
        print("  no utilisation: the peak of this GPU is not known, give --peak-tflops")
        return
    share = rates["last"].times(100 * flops / 1e12 / peak)
    report.add(f"mfu_{track}", f"{track}: model FLOP utilisation of {peak:g} TFLOP/s", share, unit="%")


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Every track asked for."""
    on_gpu = report.device.type == "cuda"
    numerics = Numerics(report.device, bf16=on_gpu, compiled=on_gpu)
    tracks = args.tracks or (list(TRACKS) if on_gpu else ["cls_pretrain_ViT-S/16"])
    if not on_gpu:
        args.batch = args.batch or 2
    args.steps = args.steps or (10 if on_gpu else 1)
    args.image_size = args.image_size or (224 if on_gpu or args.record else 128)
    how = "bfloat16, compiled" if on_gpu else "float32, not compiled"
    report.describe(
        f"training steps, {how}, {args.image_size} pixels, "
        + ", ".join(f"{track} x {batch_of(track, args)}" for track in tracks),
        dataset=f"random images, {args.image_size} px",
        n_images=sum(args.steps * batch_of(track, args) for track in tracks),
        batches={track: batch_of(track, args) for track in tracks},
        precision=how,
    )
    if on_gpu:
        report.add("matmul_tflops", "a bfloat16 product of 8192 x 8192", measured_tflops(report.device), unit="TFLOP/s")
    for track in tracks:
        bench_track(track, args, report, numerics)
        if on_gpu:
            torch.compiler.reset()
            torch.cuda.empty_cache()
    if not on_gpu:
        print("  GPU rates (images/s, utilisation) have not been run here: run with --device cuda")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_training_rate", __doc__, rounds=3, recorded_rounds=7)
    parser.add_argument("--tracks", nargs="+", choices=TRACKS, help="default: all on a GPU, the first on a CPU")
    parser.add_argument("--batch", type=positive, help="images per step; default 2 on a CPU, on a GPU each track's own")
    parser.add_argument("--steps", type=positive, help="steps per turn of a side; default 1 on a CPU, 10 on a GPU")
    parser.add_argument("--image-size", type=positive, help="pixels of cls_pretrain's; default 224, quick on a CPU 128")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the GPU; default by its name")
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
