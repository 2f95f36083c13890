"""Parts that the DINO tests share: golden vectors, tiny networks, and runs of main_dino.py on small synthetic data."""

from functools import partial
from pathlib import Path

import dino_backbone
import dino_data
import dino_training
import main_dino
import numpy as np
import torch
from dino_head import DinoHead, MultiCrop

from last_vit import dino_vit
from last_vit.dense import attach_pool

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# a run of 2 epochs x 3 steps: patches of 8, crops of 32 (16 patches) and 16 pixels (4)
TINY_RUN = {
    "arch": "vit_tiny",
    "patch_size": 8,
    "global_crop_size": 32,
    "local_crop_size": 16,
    "local_crops_number": 2,
    "out_dim": 32,
    "batch_size_per_gpu": 4,
    "epochs": 2,
    "warmup_epochs": 1,
    "num_workers": 0,
    "data_path": "synthetic",
    "output_dir": "run",
    "saveckp_freq": 0,
    "freeze_last_layer": 0,
    "use_fp16": False,
}


def golden(name):
    """Arrays of a golden file as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def tiny_vit(**kwargs):
    """The golden ViT: patch 8, D = 48, grid 4 x 4."""
    return dino_vit.DinoVisionTransformer(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3} | kwargs, num_heads=3
    )


def tiny_network(out_dim=96, **kwargs):
    return MultiCrop(attach_pool(tiny_vit(), "cls"), DinoHead(48, out_dim, hidden_dim=64, bottleneck_dim=32, **kwargs))


def shrink():
    """Make main_dino.py's networks and data tiny; (module, name, value) for monkeypatch.setattr."""
    return [
        (dino_vit, "DINO_VITS", {"vit_tiny": (24, 2, 3)}),
        (dino_backbone, "DINO_VITS", {"vit_tiny": (24, 2, 3)}),
        (dino_training, "DinoHead", partial(DinoHead, hidden_dim=32, bottleneck_dim=16)),
        (dino_data, "_NUM_SYNTHETIC", 12),
    ]


def arguments(**options):
    flags = {**TINY_RUN, **options}
    texts = ([f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))] for name, value in flags.items())
    return [word for words in texts for word in words]


def run(**options):
    """main_dino.py's exit status for TINY_RUN with other flags."""
    try:
        main_dino.main(arguments(**options))
    except SystemExit as stop:
        return stop.code
    return 0
