"""Parts that the tests of DINO's evaluations share: coloured images in ImageNet's layout, a small ViT, records."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record_parts import read_records

from last_vit.dense import attach_pool, pooling_of
from last_vit.dino_vit import build_dino_vit

COLOURS = {"n01": (200, 60, 60), "n02": (60, 200, 60), "n03": (60, 60, 200)}
MODEL = ("--arch", "vit_mini", "--patch_size", "8")


def write_colours(root: Path, train: int, val: int) -> Path:
    """Noise around a colour per class, `train` and `val` images of each, of several shapes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for wnid, colour in COLOURS.items():
            (root / split / wnid).mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 25, (36 + i, 48 - i, 3)) + colour
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / split / wnid / f"{split}_{i}.png")
    return root


def write_run(path: Path, pool: str | None = None, top_k: float | None = None, seed: int = 0) -> Path:
    """A checkpoint as main_dino.py writes it, of a vit_mini/8 for 32 pixels whose student is not its teacher."""
    networks = {}
    for name in ("student", "teacher"):
        torch.manual_seed(seed + (name == "student"))
        vit = build_dino_vit("vit_mini", 8, 32)
        networks[name] = {f"backbone.{key}": tensor for key, tensor in vit.state_dict().items()}
        networks[name]["head.mlp.0.weight"] = torch.zeros(2, 2)
    pooling = {"pooling": pooling_of(attach_pool(vit, pool, top_k))} if pool else {}
    student = {f"module.{key}": tensor for key, tensor in networks["student"].items()}
    torch.save({"student": student, "teacher": networks["teacher"], "epoch": 1, **pooling}, path)
    return path


def only_record(main, *arguments, into: str = "output") -> dict:
    """The record that a command writes, into an emptied folder."""
    shutil.rmtree(into, ignore_errors=True)
    main([str(argument) for argument in arguments])
    (record,) = read_records(into)
    return record
