"""Images/s of one CPU core from JPEG files to training batches, against the release's way.

Both readers take the same files through the same crops and flips, in this process, on one thread, in turn; ratios are
of this process's CPU time, and the rates are this CPU's. `difference` is the mean distance of a view from the release's
(Pillow, torchvision's transforms on PIL images), in levels of 0 to 255. The loader is `build_train_loader` around our
reader, without worker processes. Test images are read as evaluations do, beside a forward pass of ViT-Ti/16. The files
come from memory, so a slow disk is not seen: 8 made pictures of 500 x 375 pixels with the spectrum of photographs, of
90 kB, as ImageNet's are on average.
"""

import statistics
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench_report import BenchReport, Ratio, alternate, ratio
from dino_data import MultiCropAugmentation
from PIL import Image
from torchvision import transforms

from last_vit.data.image_files import load_rgb
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import build_train_loader
from last_vit.data.synthetic_drawing import noise_fields
from last_vit.data.transforms import train_transform
from last_vit.dense import dense_forward
from last_vit.evaluation import eval_transform
from last_vit.models import load_trained_model
from last_vit.preprocessing import IMAGENET_MEAN, IMAGENET_STD

PHOTO_HW, SIZE = (375, 500), 224
NUM_TEST = 16
GOAL_OVER_RELEASE = 1.2
Reader = Callable[[Path], object]


def release_reader() -> Reader:
    """The release's own way."""
    steps = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return lambda path: steps(Image.open(path).convert("RGB"))


def mean_difference(reader: Reader, reference: Reader, paths: list[Path]) -> float:
    """Mean absolute difference of two readers' views on the same crops, in levels of 0 to 255."""
    std, total = torch.tensor(IMAGENET_STD).view(3, 1, 1), 0.0
    for seed, path in enumerate(paths):
        views = []
        for read in (reader, reference):
            torch.manual_seed(seed)
            views.append(read(path))
        total += (255 * std * (views[0] - views[1])).abs().mean().item()
    return total / len(paths)


def made_photos(folder: Path, number: int) -> ImageNetDataset:
    """Files with the amplitude spectrum of photographs, 8 different ones, in ImageNet's layout."""
    inner = folder / "train" / "n00000000"
    inner.mkdir(parents=True)
    for index in range(number):
        path = inner / f"{index:05d}.JPEG"
        if index >= 8:
            path.symlink_to(inner / f"{index % 8:05d}.JPEG")
            continue
        fields = noise_fields((1.2,) * 3, max(PHOTO_HW), np.random.default_rng(index))[:, : PHOTO_HW[0], : PHOTO_HW[1]]
        pixels = (128 + 50 * fields).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=90)
    return ImageNetDataset(folder, "train", train_transform(SIZE))


def read_all(read: Reader, paths: list[Path]) -> Callable[[], None]:
    """One turn: every file once, always with the same random numbers."""

    def turn() -> None:
        torch.manual_seed(0)
        for path in paths:
            read(path)

    return turn


def bench(report: BenchReport) -> None:
    """Readers, loader, DINO's views."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = made_photos(Path(folder), report.size(48, 96))
        paths = [Path(path) for path in dataset.image_paths]
        words = f"made pictures of {PHOTO_HW[1]} x {PHOTO_HW[0]} pixels"
        report.describe(
            f"{len(paths)} JPEG files, {words}, to {SIZE} px", dataset=f"{words}, JPEG", n_images=len(paths)
        )
        transform, views = train_transform(SIZE), MultiCropAugmentation((0.4, 1.0), (0.05, 0.4), 8)
        readers = {
            "ours": lambda path: transform(transform.load(path)),
            "release": release_reader(),
        }
        loader = build_train_loader(dataset, batch_size=8, num_workers=0)
        work = {name: read_all(read, paths) for name, read in readers.items()}
        trained = load_trained_model("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", None, random_seed=0)
        test_view = eval_transform(trained.preprocessing)
        inputs = torch.stack([test_view(load_rgb(path)) for path in paths[:NUM_TEST]])
        work["test"] = read_all(lambda path: test_view(load_rgb(path)), paths[:NUM_TEST])
        work["model"] = torch.inference_mode()(lambda: dense_forward(trained.model, inputs))
        work["loader"] = lambda: [batch["label"] for batch in islice(iter(loader), len(paths) // 8)]
        work["dino"] = read_all(lambda path: views(load_rgb(path)), paths[:4])
        times = alternate(work, report.size(3, 9))
        over = ratio(times["release"], times["ours"])
        report.add("over_release", "reading training images against the release's reader", over, goal=GOAL_OVER_RELEASE)
        above = ratio(times["model"], times["test"])
        report.add("test_over_model", "reading test images against the forward pass of ViT-Ti/16", above, goal=1.0)
        off = mean_difference(readers["ours"], readers["release"], paths)
        report.add(
            "difference", "mean difference of our views from the release's", off, limit=1.0, unit="levels of 255"
        )
        for name, words, count in (
            ("ours", "ours, one core", len(paths)),
            ("loader", "training loader around ours, one core", len(paths)),
            ("dino", "DINO's 2 + 8 views, one core", 4),
            ("test", "test images, one core", NUM_TEST),
            ("model", "forward pass of ViT-Ti/16, one core", NUM_TEST),
        ):
            rate = Ratio(*(count / choose(times[name]) for choose in (statistics.median, max, min)))
            report.add(f"rate_{name}", words, rate, unit="images/s")
