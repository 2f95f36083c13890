"""compare_models.py: what is drawn is what the model computes, and a picture comes out."""

from pathlib import Path

import compare_models
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import VisionTransformer

from last_vit import last_select, patch_score, vote_count
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_forward
from last_vit.trained_model import load_trained_model

CONFIG = """
from detectron2.config import LazyCall as L
from torchvision.models import VisionTransformer
model = L(VisionTransformer)(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An ImageNet of 3 images, and weights of one tiny ViT."""
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("val/n01", "Annotations/CLS-LOC/val"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(f"val/n01/{i}.png")
        box = "<xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>25</ymax>"
        Path(f"Annotations/CLS-LOC/val/{i}.xml").write_text(
            "<annotation><size><width>50</width><height>40</height></size>"
            f"<object><name>n01</name><bndbox>{box}</bndbox></object></annotation>"
        )
    Path("tiny.py").write_text(CONFIG)
    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    torch.save({"model": vit.state_dict(), "pooling": {"pool": "last", "top_k": 3, "variant": "paper"}}, "last.pth")
    torch.save(vit.state_dict(), "bare.pth")
    return tmp_path


def arguments(*names: str) -> list[str]:
    models = [word for name in names for word in ("--name", name, "--model", "tiny.py", "--checkpoint", f"{name}.pth")]
    size = ["--image-size", "32", "--resize", "36", "--device", "cpu", "--output", "out/picture.png"]
    return ["--imagenet-root", ".", *models, *size]


def test_view_is_what_the_model_computes(folder):
    trained = load_trained_model("tiny.py", "last.pth", image_size=32, resize=36)
    dataset = ImageNetDataset(folder, "val", boxes=True, single_object=True)
    view = compare_models.compute_view("LaSt", trained, dataset, [0, 2], torch.device("cpu"))
    assert view.titles == ("LaSt\npatch score", "LaSt\nvotes, K = 3")
    assert view.pictures.shape == (2, 32, 32, 3)
    prep = trained.preprocessing
    pixels = view.pictures.permute(0, 3, 1, 2)
    images = (pixels - torch.tensor(prep.mean)[:, None, None]) / torch.tensor(prep.std)[:, None, None]
    with torch.no_grad():
        output = dense_forward(trained.model, images)
    score = patch_score(output.patch_tokens, output.global_token)
    torch.testing.assert_close(view.score_maps.flatten(1), score, atol=1e-4, rtol=0)
    votes = vote_count(last_select(output.patch_tokens, 3, variant="paper"), 16)
    assert (view.vote_maps.flatten(1) - votes).abs().sum() <= 2  # rounding through the picture may move a tie
    assert view.vote_maps.sum(dim=(1, 2)).tolist() == [48, 48]
    for row in range(2):
        x, y = (view.peaks_xy[row] / 8).long().tolist()
        assert view.score_maps[row, y, x] == view.score_maps[row].max()
        x1, y1, x2, y2 = view.boxes_xyxy[row].tolist()
        assert view.is_hit[row] == (x1 <= view.peaks_xy[row, 0] < x2 and y1 <= view.peaks_xy[row, 1] < y2)


def test_picture_has_a_row_per_image_and_two_columns_per_model(folder):
    compare_models.main([*arguments("bare", "last"), "--num-images", "2"])
    two = Image.open("out/picture.png")
    compare_models.main([*arguments("last"), "--num-images", "3"])
    one = Image.open("out/picture.png")
    assert two.format == "PNG"
    assert two.width / one.width == pytest.approx(5 / 3, rel=0.01)
    assert one.height > two.height


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--name", "third"], "go together"),
        (["--num-images", "9"], "must be in [1, 3]"),
        (["--imagenet-label-dir", "nowhere"], "nowhere"),
    ],
)
def test_one_line_for_every_mistake(folder, capsys, extra, match):
    with pytest.raises(SystemExit) as stop:
        compare_models.main([*arguments("last"), *extra])
    assert stop.value.code == 2
    assert match in capsys.readouterr().err
