"""Images/s of one CPU core from JPEG files to training batches, against other libraries; how many cores feed an H200.

    python tools/bench/bench_data.py [--photos FOLDER] [--image-size 224] [--rounds 5] [--record]
    python tools/bench/bench_data.py --step-rate cls_pretrain_ViT-S/16=14000

Every reader of bench_readers.py takes the same files through the same crops and flips, in this process, on one thread,
in turn; ratios are of this process's CPU time, and the rates are this CPU's. `difference` is the mean distance of a
view from the release's, in levels of 0 to 255. The loader is `build_train_loader` around our reader, without worker
processes. The files come from memory, so a disk that is slower than this is not seen. Without --photos, 8 pictures of
500 x 375 pixels with the spectrum of photographs are made, of 90 kB, as ImageNet's are on average.

The cores that feed an H200 are its training rate over the loader's rate per core. The training rate is what --step-rate
says; else what results/bench_training_rate_cuda.json measured on a GPU; else it is assumed: the operations of a step at
40 % of the H200's bfloat16 peak. DINO's views (2 + 8 crops with colour jitter and blur, on PIL images) are counted too.

Not measured: pillow-simd (source only, and it takes the place of Pillow), ffcv (its own file format), NVIDIA's DALI
(a pipeline, and random numbers, of its own), decoders of the crop alone (no library with wheels offers one to Python).
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench_flops import PEAK_TFLOPS, count_flops
from bench_readers import ALTERNATIVES, mean_difference, our_reader, release_reader
from bench_report import BenchParser, BenchReport, processor, run_bench
from bench_timing import Ratio, alternate, ratio
from bench_tracks import load_track
from PIL import Image
from torchvision.models import VisionTransformer

from last_vit.command_line import positive
from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import build_train_loader
from last_vit.data.synthetic_drawing import noise_fields
from last_vit.data.transforms import train_transform

PHOTO_HW, NUM_MADE = (375, 500), 8
GPU, ASSUMED_UTILISATION = "NVIDIA H200", 0.4
CLS_TRACKS = {"cls_pretrain_ViT-S/16": (6, 384), "cls_pretrain_ViT-B/16": (12, 768)}  # heads, channels
DINO_TRACK = "dino_ViT-S/16"
DINO_SCALES, DINO_LOCAL = ((0.4, 1.0), (0.05, 0.4)), 8  # of main_dino.py's defaults
GOAL_OVER_RELEASE, GOAL_OVER_OTHERS = 1.2, 1.0
GPU_RECORD = Path("results") / "bench_training_rate_cuda.json"


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Readers, loader, cores."""
    if args.threads != 1:
        raise ValueError(f"--threads must be 1, for the rates are of one core, got {args.threads}")
    stated = stated_rates(args.step_rate)
    with tempfile.TemporaryDirectory() as folder:
        dataset, left_out = image_set(Path(folder), args)
        paths = [Path(path) for path in dataset.image_paths]
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        what = "photos" if args.photos else f"made pictures of {PHOTO_HW[1]} x {PHOTO_HW[0]} pixels"
        report.describe(
            f"{len(paths)} files ({what}, {size:.0f} kB on average) to views of {args.image_size} px; {processor()}",
            dataset=f"{what}, JPEG, {size:.0f} kB on average",
            n_images=len(paths),
        )
        if left_out:
            print(f"  left out: {left_out} files that are no JPEG in colour")
        rates = measure(dataset, paths, args, report)
    report_cores(rates, stated, args.image_size, report)


def measure(dataset: ImageNetDataset, paths: list[Path], args: argparse.Namespace, report: BenchReport) -> dict:
    """Report the readers and the loader; images/s of one core, by track."""
    ours, reference = our_reader(args.image_size), release_reader(args.image_size)
    readers = {each.name: each.build(args.image_size) for each in ALTERNATIVES if each.is_installed}
    for missing in (each for each in ALTERNATIVES if not each.is_installed):
        print(f"  not measured: {missing.words}; pip install {missing.package}")
    work = {"ours": read_all(ours, paths)} | {name: read_all(read, paths) for name, read in readers.items()}
    loader = build_train_loader(dataset, batch_size=8, num_workers=0)
    num_batches = max(1, len(paths) // 8)
    work["loader"] = lambda: [batch["label"] for batch in islice(iter(loader), num_batches)]
    few = paths[:: max(1, len(paths) // 4)][:4]
    work["dino"] = read_all(dino_reader(), few)
    counts = {name: len(paths) for name in work} | {"loader": 8 * num_batches, "dino": len(few)}
    times = {name: [each / counts[name] for each in seconds] for name, seconds in alternate(work, args.rounds).items()}
    rates = {name: Ratio(*(1 / f(each) for f in (statistics.median, max, min))) for name, each in times.items()}

    report.add("rate_ours", "ours, one core", rates["ours"], unit="images/s")
    difference = mean_difference(ours, reference, paths)
    print(f"    difference {difference:.3f}")
    report.keep(difference_ours=difference)
    for each in ALTERNATIVES:
        if each.name in times:
            goal = GOAL_OVER_RELEASE if each.name == "pillow" else GOAL_OVER_OTHERS if each.name != "fast_dct" else None
            report.add(f"over_{each.name}", f"ours against {each.words}", ratio(times[each.name], times["ours"]), goal)
            difference = mean_difference(readers[each.name], reference, paths)
            print(f"    {rates[each.name].median:,.0f} images/s per core, difference {difference:.3f}")
            report.keep(**{f"rate_{each.name}": rates[each.name].median, f"difference_{each.name}": difference})
    report.add("rate_loader", "training loader around ours, one core", rates["loader"], unit="images/s")
    report.add("rate_dino", "DINO's 2 + 8 views, one core", rates["dino"], unit="images/s")
    return dict.fromkeys(CLS_TRACKS, rates["loader"]) | {DINO_TRACK: rates["dino"]}


def report_cores(rates: dict[str, Ratio], stated: dict[str, float], image_size: int, report: BenchReport) -> None:
    """How many cores feed one H200, and where its rate is from."""
    measured = measured_rates(GPU_RECORD)
    for track, rate in rates.items():
        if track in stated:
            step, source = stated[track], "stated"
        elif track in measured:
            step, source = measured[track], "measured"
        else:
            step = PEAK_TFLOPS[GPU] * 1e12 * ASSUMED_UTILISATION / training_flops(track, image_size)
            source = f"ASSUMED, {ASSUMED_UTILISATION:.0%} of its peak"
        cores = [math.ceil(step / each) for each in (rate.median, rate.high, rate.low)]
        key = track.replace("/", "_").replace("-", "_")
        words = f"cores per H200, {track}, {step:,.0f} images/s ({source})"
        report.add(f"cores_{key}", words, Ratio(*map(float, cores)), unit="cores")
        report.keep(**{f"step_rate_{key}": step})


def read_all(read: Callable[[Path], object], paths: list[Path]) -> Callable[[], None]:
    """One turn: every file once, always with the same random numbers."""

    def turn() -> None:
        torch.manual_seed(0)
        for path in paths:
            read(path)

    return turn


def dino_reader() -> Callable[[Path], object]:
    """DINO's augmentation, as its trainer uses it."""
    (augmentation,) = load_track("dino", "dino_augmentation")
    views = augmentation.MultiCropAugmentation(*DINO_SCALES, DINO_LOCAL)
    return lambda path: views(load_rgb(path))


def training_flops(track: str, image_size: int) -> float:
    """FLOPs of a step per image: forward and backward pass. DINO's without its head."""
    heads, channels = CLS_TRACKS.get(track, CLS_TRACKS["cls_pretrain_ViT-S/16"])

    def step(size: int, backward: bool = True) -> int:
        with torch.device("meta"):
            model = VisionTransformer(
                size, 16, num_layers=12, num_heads=heads, hidden_dim=channels, mlp_dim=4 * channels
            )
            images = torch.empty(1, 3, size, size)
        return count_flops(lambda: model(images).sum().backward() if backward else model(images))

    if track != DINO_TRACK:
        return step(image_size)
    return 2 * step(224) + DINO_LOCAL * step(96) + 2 * step(224, backward=False)


def stated_rates(texts: Sequence[str]) -> dict[str, float]:
    """--step-rate's TRACK=IMAGES/S.

    Raises:
        ValueError: Another form, an unknown track, or a rate that is not positive.
    """
    rates = {}
    for text in texts:
        track, _, rate = text.partition("=")
        try:
            rates[track] = float(rate)
        except ValueError:
            rates[track] = 0.0
        if track not in (*CLS_TRACKS, DINO_TRACK) or not 0 < rates[track] < math.inf:
            known = ", ".join((*CLS_TRACKS, DINO_TRACK))
            raise ValueError(f"--step-rate must be TRACK=IMAGES/S, with a track of {known}; got {text!r}")
    return rates


def measured_rates(path: Path) -> dict[str, float]:
    """Training rates by track that bench_training_rate.py recorded on an H200; empty where it has not."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if not record["device"].startswith(GPU):
        print(f"  {path} is of another device ({record['device']}), so not used")
        return {}
    return {track: rate for track, rate in record["metrics"].items() if track in (*CLS_TRACKS, DINO_TRACK)}


def image_set(folder: Path, args: argparse.Namespace) -> tuple[ImageNetDataset, int]:
    """A data set of `--images` files in the temporary folder, in ImageNet's layout, and how many were left out.

    Raises:
        FileNotFoundError: No JPEG in colour below --photos.
    """
    inner = folder / "train" / "n00000000"
    inner.mkdir(parents=True)
    left_out = 0
    if args.photos is None:
        files = make_photos(folder)
    else:
        found = sorted(
            path for path in Path(args.photos).expanduser().rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )
        spread = np.linspace(0, len(found) - 1, min(args.images, len(found))).astype(int)
        files = [found[index].resolve() for index in spread if is_colour_jpeg(found[index])]
        left_out = len(spread) - len(files)
    if not files:
        raise FileNotFoundError(f"no JPEG in colour below {args.photos} (suffix .jpg or .jpeg, in any case)")
    for index in range(args.images if args.photos is None else len(files)):
        (inner / f"{index:05d}.JPEG").symlink_to(files[index % len(files)])
    return ImageNetDataset(folder, "train", train_transform(args.image_size)), left_out


def is_colour_jpeg(path: Path) -> bool:
    """Whether every library here can read it."""
    try:
        with Image.open(path) as image:
            return image.format == "JPEG" and image.mode == "RGB"
    except OSError:
        return False


def make_photos(folder: Path) -> list[Path]:
    """Pictures with the amplitude spectrum of photographs."""
    paths = []
    for index in range(NUM_MADE):
        rng = np.random.default_rng(index)
        fields = noise_fields((1.2, 1.2, 1.2), max(PHOTO_HW), rng)[:, : PHOTO_HW[0], : PHOTO_HW[1]]
        pixels = (128 + 50 * fields).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        paths.append(folder / f"made_{index}.jpg")
        Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1], quality=90)
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_data", __doc__, rounds=5, recorded_rounds=9, has_gpu_side=False)
    parser.add_argument("--photos", help="folder with JPEG files anywhere below; default: made pictures")
    parser.add_argument("--image-size", type=positive, default=224, help="side of a view in pixels (default 224)")
    parser.add_size("--images", 48, 96, "files per turn")
    parser.add_argument(
        "--step-rate", action="append", default=[], metavar="TRACK=IMAGES/S", help="a training rate; may be repeated"
    )
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
