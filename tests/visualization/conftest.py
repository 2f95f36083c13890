"""One small set of images and one trained ViT for all diagnostics, and a way to call their commands."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from diagnostic_parts import CLASSES, IMAGES, SMALL, VIT, read_records
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture(scope="session")
def diagnostic_root(tmp_path_factory) -> Path:
    """ImageNet's layout, masks that are its filled boxes, and weights of a ViT of 3 classes whose answers differ."""
    root = tmp_path_factory.mktemp("diagnostics")
    rng = np.random.default_rng(0)
    boxes_folder = root / "imagenet/Annotations/CLS-LOC/val"
    for folder in (boxes_folder, root / "masks"):
        folder.mkdir(parents=True)
    for i, (width, height, boxes) in enumerate(IMAGES):
        path = root / f"imagenet/val/n0{i % CLASSES}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        mask, objects = np.zeros((height, width), np.uint8), ""
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 1
            corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            objects += f"<object><name>thing</name><bndbox>{corners}</bndbox></object>"
        Image.fromarray(mask).save(root / f"masks/{i}.png")
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (boxes_folder / f"{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    torch.manual_seed(1)
    vit = timm.create_model("test_vit", num_classes=CLASSES, img_size=64)
    torch.nn.init.normal_(vit.head.weight)
    torch.save(vit.state_dict(), root / "vit.pth")
    return root


class Diagnostic:
    """Calls commands in the current folder; figures are kept instead of being written."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def __call__(self, script, *flags: str, models: tuple[str, ...] = (VIT,), size=SMALL) -> list[dict]:
        """The records of one call, without those of an earlier one."""
        for folder in ("results", "output"):
            shutil.rmtree(folder, ignore_errors=True)
        self.figures.clear()
        script.main([*(word for model in models for word in ("--model", model)), *size, *flags])
        return read_records()


@pytest.fixture
def here(diagnostic_root, tmp_path, monkeypatch) -> Path:
    """An empty folder with links to the session's images and weights, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for path in diagnostic_root.iterdir():
        Path(path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def call(here, monkeypatch) -> Diagnostic:
    """The way to call commands, in `here`."""
    diagnostic = Diagnostic()
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: diagnostic.figures.update({str(path): figure}))
    return diagnostic
