"""What data-parallel training costs on 8 and 64 GPUs: bytes per step counted, times by arithmetic. Nothing is run.

    python tools/bench/bench_scaling.py [--intra-gbs 450] [--inter-gbs 50] [--record]
    python tools/bench/bench_scaling.py --step-ms clip_ViT-B/16=120

Bytes follow from the models and trainers (bench_collectives.py has the formulas; tests/test_bench_scaling.py counts
them in two gloo processes): the gradients that DDP all-reduces, float32 or, with torch's bf16_compress_hook, bfloat16;
the losses of the log; DINO's centre; CLIP's features, which are all-gathered, and as clip/recipes have it their
gradient sent back. An evaluation sends its counters once, whatever the number of images.

    efficiency(n) = t / t(n)
    t(n) = t + gradients / b + rest / b            no overlap
    t(n) = max(t, gradients / b) + rest / b        gradients sent wholly behind the backward pass

t is the step on one GPU: that of results/bench_training_rate_cuda.json, or --step-ms. b is what a GPU sends per second:
--intra-gbs up to 8 GPUs, --inter-gbs beyond. The defaults are data-sheet numbers, not measured ones: NVLink of an H100
or H200 SXM, 450 GB/s in each direction, and one 400 Gbit/s adapter per GPU, 50 GB/s. Where t is not known, the step
that would be needed for 90 % without overlap is printed in place of the efficiency.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from bench_collectives import Link, Messages, gradient_bytes, step_seconds
from bench_report import BenchParser, BenchReport, run_bench
from bench_tracks import load_track
from bench_train_steps import read_recipe
from bench_training_rate import RECIPES, TRACKS
from torch import nn

from last_vit.results import RESULTS_DIR

WORLD_SIZES = (8, 64)
DINO_OUT_DIM, FLOAT = 65536, 4
CLS_REDUCED = FLOAT  # the loss, for the log
POINT_IN_BOX = 5 * 8  # float64 counters, once per evaluation
NEEDED = 0.9
RATES = "bench_training_rate_cuda"


def track_messages(track: str, batch: int, bytes_per_gradient: int = FLOAT) -> Messages:
    """What a track's step sends.

    Args:
        track: One of `TRACKS`.
        batch: Images per GPU.
        bytes_per_gradient: 4, or 2 with a bfloat16 hook.
    """
    with torch.device("meta"):
        if track in RECIPES:
            model = build_cls(track)
            return Messages(gradient_bytes(model, bytes_per_gradient), reduced=CLS_REDUCED)
        if track == "dino_ViT-S/16":
            return Messages(gradient_bytes(build_dino(), bytes_per_gradient), reduced=dino_reduced(DINO_OUT_DIM))
    model, width = build_clip()
    return Messages(gradient_bytes(model, bytes_per_gradient), **clip_features(batch, width))


def clip_features(batch: int, width: int) -> dict[str, int]:
    """CLIP's part of `Messages`: features of images and texts [batch, width], which a GPU normalises in float32."""
    features = 2 * batch * width * FLOAT
    return {"gathered": features, "gathered_back": features}  # --local-loss --gather-with-grad


def dino_reduced(out_dim: int) -> int:
    """Bytes that a DINO step reduces beside its gradients: the centre's sum and three losses."""
    return FLOAT * (out_dim + 3)


def build_cls(track: str) -> nn.Module:
    """cls_pretrain's classifier of a recipe."""
    from detectron2.config import instantiate

    return instantiate(read_recipe(RECIPES[track], "last", 224).model)


def build_dino() -> nn.Module:
    """DINO's student as main_dino.py's defaults have it."""
    multi_crop, dino_head = load_track("dino", "multi_crop", "dino_head")
    from last_vit.dino_vit import build_dino_vit

    return multi_crop.MultiCrop(build_dino_vit("vit_small", 16), dino_head.DinoHead(384, DINO_OUT_DIM))


def build_clip() -> tuple[nn.Module, int]:
    """open_clip's ViT-B-16 without memory, and the width of its features."""
    import open_clip

    width = open_clip.get_model_config("ViT-B-16")["embed_dim"]
    return open_clip.create_model("ViT-B-16", device="meta", load_weights=False), width


def known_step(track: str, args: argparse.Namespace) -> tuple[float, int] | None:
    """Seconds of a step on one GPU and its images: of --step-ms, or of the training rate's record; None without."""
    for text in args.step_ms:
        name, _, milliseconds = text.partition("=")
        if name not in TRACKS:
            raise ValueError(f"--step-ms takes TRACK=MS with a track of {', '.join(TRACKS)}, got {text!r}")
        if name == track:
            return _positive_number(milliseconds, "--step-ms") / 1000, TRACKS[track]
    path = RESULTS_DIR / f"{RATES}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    rate, batch = record["metrics"].get(track), record["config"].get("batches", {}).get(track)
    return None if rate is None or batch is None else (batch / rate, batch)


def bench_track(track: str, args: argparse.Namespace, report: BenchReport) -> None:
    """One track's bytes, and its efficiency or the step that it would need: a table, and the main numbers."""
    link, step = Link(args.intra_gbs, args.inter_gbs), known_step(track, args)
    batch = TRACKS[track] if step is None else step[1]
    print(f"  {track}, {batch} images per GPU, step on one GPU {_milliseconds(step)}")
    for precision, size in (("float32", FLOAT), ("bfloat16", 2)):
        messages = track_messages(track, batch, size)
        for n in WORLD_SIZES:
            sent = (messages.sent_behind(n) / 1e6, messages.sent_alone(n) / 1e6)
            report.keep(**{f"sent_{track}_{precision}_{n}": sum(sent)})
            line = f"    {n:3d} GPUs, gradients in {precision:8s}  each sends {sent[0]:7.1f} + {sent[1]:7.2f} MB"
            if step is None:
                needed = step_seconds(0.0, messages, link, n, overlap=False) * NEEDED / (1 - NEEDED)
                report.keep(**{f"needed_ms_{track}_{precision}_{n}": 1000 * needed})
                print(f"{line}   a step of {1000 * needed:.1f} ms would be {NEEDED:.0%} efficient without overlap")
                continue
            shares = [100 * step[0] / step_seconds(step[0], messages, link, n, overlap) for overlap in (False, True)]
            for overlap, share in zip((0, 100), shares, strict=True):
                report.keep(**{f"efficiency_{track}_{precision}_{n}_overlap{overlap}": share})
            print(f"{line}   efficiency {shares[0]:.1f}% without overlap, {shares[1]:.1f}% with all of it")
    n = WORLD_SIZES[-1]
    messages = track_messages(track, batch)
    sent = messages.sent_behind(n) + messages.sent_alone(n)
    report.add(f"sent_{track}", f"{track}: bytes that each of {n} GPUs sends per step", sent / 1e6, unit="MB")
    if step is not None:
        share = step[0] / step_seconds(step[0], messages, link, n, overlap=False)
        report.add(f"efficiency_{track}", f"{track}: {n} GPUs without overlap, by arithmetic", 100 * share, unit="%")


def _milliseconds(step: tuple[float, int] | None) -> str:
    return "not known" if step is None else f"{1000 * step[0]:.1f} ms"


def _positive_number(text: str, flag: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{flag} takes positive numbers, got {text!r}")
    return value


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Every track."""
    for flag in ("--intra-gbs", "--inter-gbs"):
        _positive_number(str(getattr(args, flag[2:].replace("-", "_"))), flag)
    report.describe(
        f"by arithmetic, {args.intra_gbs:g} GB/s in a node and {args.inter_gbs:g} GB/s between nodes, per GPU",
        dataset="none: arithmetic from counted bytes",
        n_images=1,
    )
    print("  one GPU sends nothing: efficiency 100%")
    print(f"  an evaluation by Point-in-Box reduces {POINT_IN_BOX} bytes in all")
    for track in TRACKS:
        bench_track(track, args, report)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_scaling", __doc__, rounds=1)
    parser.add_argument("--intra-gbs", type=float, default=450.0, help="GB/s per GPU within a node (default 450)")
    parser.add_argument("--inter-gbs", type=float, default=50.0, help="GB/s per GPU between nodes (default 50)")
    parser.add_argument("--step-ms", nargs="+", default=[], metavar="TRACK=MS", help="a step's time on one GPU")
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
