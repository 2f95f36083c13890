"""Parts that the tests of train_clip.py share: a tiny CLIP, small data in every layout, and runs."""

import io
import json
import logging
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import train_clip
from PIL import Image

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# a run of 2 epochs on the CPU; the model's name has "vit" in it for open_clip's choice of beta2
TINY_RUN = {
    "model": "tiny_vit_clip.json",
    "batch-size": 4,
    "epochs": 2,
    "warmup": 2,
    "lr": 0.001,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "name": "run",
    "log-every-n-steps": 1,
}
CHECKPOINTS = Path("logs/run/checkpoints")


def write_config(path="tiny_vit_clip.json", **changes):
    """A model config of open_clip's; `vision` and `text` change the towers'."""
    config = json.loads(json.dumps(TINY))
    config["vision_cfg"] |= changes.pop("vision", {})
    config["text_cfg"] |= changes.pop("text", {})
    Path(path).write_text(json.dumps(config | changes))
    return str(path)


def arguments(*extra, **options):
    """Command line of TINY_RUN with other flags; None leaves one out, True is a flag without value."""
    flags = TINY_RUN | {name.replace("_", "-"): value for name, value in options.items()}
    words = []
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return [*words, *extra]


@contextmanager
def logging_restored():
    """Undo what open_clip_train does to logging: handlers at the root, and every logger's level."""
    handlers, levels = list(logging.root.handlers), {logger: logger.level for logger in _loggers()}
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - set(handlers):
            logging.root.removeHandler(handler)
            handler.close()
        for logger in _loggers():
            logger.setLevel(levels.get(logger, logging.NOTSET))


def _loggers():
    return [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]


def run(*extra, **options):
    """Exit status of train_clip.py."""
    with logging_restored():
        try:
            train_clip.main(arguments(*extra, **options))
        except SystemExit as stop:
            return stop.code
    return 0


def weights(path="logs/run/checkpoints/epoch_2.pt"):
    return torch.load(path, weights_only=True)["state_dict"]


def picture(seed, mode="RGB", side=40):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_shard(path, samples):
    """A tar (or .tar.gz) as img2dataset writes it: `samples` maps a key to {extension: bytes}."""
    with tarfile.open(path, "w:gz" if str(path).endswith("gz") else "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def sound(number):
    """Members of one sound sample."""
    return {"jpg": encoded(picture(number)), "json": b'{"key": 1}', "txt": f"a photo of number {number}".encode()}


def write_csv(path="data.csv", count=10, **changed):
    """A tab-separated file and its images; `changed` maps a row as `row3` to the text of its line."""
    lines = ["filepath\ttitle"]
    for number in range(count):
        picture(number).save(f"image{number}.png")
        lines.append(changed.get(f"row{number}", f"image{number}.png\ta photo of number {number}"))
    Path(path).write_text("\n".join(lines) + "\n")
    return str(path)


def write_coco(root, count=10, split="train2017", captions=3):
    """COCO's folder with captions."""
    root = Path(root)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": 100 + number, "file_name": f"{number:012d}.jpg"} for number in range(count)]
    annotations = []
    for number, image in enumerate(images):
        picture(number).save(root / split / image["file_name"])
        for place in range(captions):
            entry = {"id": len(annotations), "image_id": image["id"], "caption": f"caption {place} of {number}\n"}
            annotations.append(entry)
    path = root / "annotations" / f"captions_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path
