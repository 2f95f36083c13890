"""Who starves whom: images/s of the input pipeline, per core, beside the rate of a training step on this machine.

Decoding and the transforms are timed alone in one process, then the training loader with workers, then the forward and
backward pass of torchvision's ViT-S/16 on random images. Without --root, photo-sized JPEGs (500 x 375 pixels, about
90 kB, as in ImageNet) are made in a temporary folder. Prints a table; writes nothing.

    python tools/bench/bench_data.py --root /data/imagenet --num-workers 8
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import VisionTransformer

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import build_train_loader
from last_vit.data.synthetic import SyntheticObjects
from last_vit.data.synthetic_parts import noise_fields
from last_vit.data.transforms import EvalTransform, load_rgb, train_transform
from last_vit.runtime import describe_device, select_device

PHOTO_HW = (375, 500)
SMALL_SIZE = 64  # of the demo's synthetic images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="ImageNet-like data set (its train split); default: made-up photos")
    parser.add_argument("--num-workers", type=int, default=2, help="loading processes of the loader (default 2)")
    parser.add_argument("--image-size", type=int, default=224, help="of the model, a multiple of 16 (default 224)")
    parser.add_argument("--num-images", type=int, default=200, help="images per measurement (default 200)")
    parser.add_argument("--batch-size", type=int, default=8, help="of loader and training step (default 8)")
    parser.add_argument("--device", default="auto", help="of the training step: auto, cpu, cuda (default auto)")
    arguments = parser.parse_args()
    if arguments.image_size < 16 or arguments.image_size % 16:
        parser.error(f"--image-size must be a positive multiple of 16 (the patch), got {arguments.image_size}")
    device = select_device(arguments.device)
    with _data_root(arguments.root) as root:
        rates = _pipeline_rates(root, arguments)
    step = f"training step of ViT-S/16, batch {arguments.batch_size}, {describe_device(device)}"
    rates[step] = _training_rate(arguments.image_size, arguments.batch_size, device)
    print(f"{'images/s':>9}  what")
    for name, rate in rates.items():
        print(f"{rate:9.1f}  {name}")
    print(f"one core's decoding and training transform feeds {rates[_TRAIN] / rates[step]:.2f} of this training step")


_TRAIN = "decode + training transform, one core"


def _pipeline_rates(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    size, count = arguments.image_size, arguments.num_images
    evaluate, train = EvalTransform(round(size / 0.875), size), train_transform(size)
    dataset = ImageNetDataset(root, "train", train)
    # spread over the classes, and the same files for every line
    paths = [dataset.image_paths[i] for i in np.linspace(0, len(dataset) - 1, count).astype(int)]
    for path in paths:
        load_rgb(path)  # from here on the files come from memory, so that the disk is not what is measured
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = SyntheticObjects(count, "train", image_size=SMALL_SIZE)
    rates = {
        "decode, one core": _rate(load_rgb, paths),
        "decode + evaluation transform, one core": _rate(lambda path: evaluate(load_rgb(path)), paths),
        _TRAIN: _rate(lambda path: train(load_rgb(path)), paths),
        f"synthetic image of {SMALL_SIZE} pixels drawn, one core": _rate(small.render, range(count)),
    }
    torch.set_num_threads(threads)
    loader = build_train_loader(dataset, arguments.batch_size, arguments.num_workers)
    batches = iter(loader)
    next(batches)  # the workers have started
    start = time.perf_counter()
    loaded = sum(len(batch["label"]) for batch in islice(batches, max(1, count // arguments.batch_size)))
    name = f"training loader, {arguments.num_workers} workers (0: this process)"
    rates[name] = loaded / (time.perf_counter() - start)
    return rates


def _rate(work: Callable, items: list | range) -> float:
    work(items[0])
    start = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - start)


def _training_rate(image_size: int, batch_size: int, device: torch.device, steps: int = 5) -> float:
    """Images/s of forward and backward pass in float32, without the optimizer."""
    model = VisionTransformer(image_size, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536).to(device)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            _synchronize(device)
            start = time.perf_counter()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    _synchronize(device)
    return steps * batch_size / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _data_root(root: Path | None) -> Iterator[Path]:
    if root is not None:
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "train" / "n00000000"
        photos.mkdir(parents=True)
        for index in range(8):
            rng = np.random.default_rng(index)
            fields = noise_fields((1.2, 1.2, 1.2), max(PHOTO_HW), rng)[:, : PHOTO_HW[0], : PHOTO_HW[1]]
            pixels = (128 + 50 * fields).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(pixels)).save(photos / f"{index}.JPEG", quality=90)
        yield Path(folder)


if __name__ == "__main__":
    main()
