"""compare_models.py: what is drawn is what the model computes, and a picture comes out."""

from pathlib import Path

import compare_models
import numpy as np
import pytest
import torch
from foreground_images import ForegroundImages
from PIL import Image
from torchvision.models import VisionTransformer

from last_vit import last_select, patch_score, vote_count
from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import load_trained_model

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


def arguments(*names: str, images: tuple[str, ...] = ("--imagenet-root", ".")) -> list[str]:
    models = [word for name in names for word in ("--model", f"{name}=tiny.py@{name}.pth")]
    size = ["--image-size", "32", "--resize", "36", "--device", "cpu", "--figure", "out/picture.png"]
    return [*images, *models, *size]


def test_view_is_what_the_model_computes(folder):
    trained = load_trained_model("tiny.py", "last.pth", image_size=32, resize=36)
    images = ForegroundImages(folder / "val", EvalTransform(36, 32), boxes=folder / "Annotations")
    view = compare_models.compute_view("LaSt", trained, images, [0, 2], torch.device("cpu"))
    assert view.titles == ("LaSt\npatch score", "LaSt\nvotes, K = 3")
    with torch.no_grad():
        output = dense_forward(trained.model, torch.stack([images[index]["image"] for index in (0, 2)]))
    score = patch_score(output.patch_tokens, output.global_token)
    torch.testing.assert_close(view.score_maps.flatten(1), score)
    votes = vote_count(last_select(output.patch_tokens, 3, variant="paper"), 16)
    torch.testing.assert_close(view.vote_maps.flatten(1), votes)
    for row, index in enumerate((0, 2)):
        column, line = (view.peaks_xy[row] / 8).long().tolist()
        assert view.score_maps[row, line, column] == view.score_maps[row].max()
        middle = images[index]["foreground"][8 * line + 4, 8 * column + 4]
        assert view.peaks_on[row] == middle
        assert middle in (0, 1)


def test_the_mark_follows_the_annotation(folder):
    """The best patch is on an object where everything is object, beside where nothing is, unknown without boxes."""
    trained = load_trained_model("tiny.py", "last.pth", image_size=32, resize=36)
    whole = (
        "<object><name>n01</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>"
    )
    size = "<annotation><size><width>50</width><height>40</height></size>"
    Path("xml").mkdir()
    for name, objects in (("0", whole), ("1", ""), ("2", whole)):
        Path(f"xml/{name}.xml").write_text(f"{size}{objects}</annotation>")
    for boxes, expected in ((Path("xml"), [1, 0, 1]), (None, [255, 255, 255])):
        images = ForegroundImages(folder / "val", EvalTransform(36, 32), boxes=boxes)
        view = compare_models.compute_view("LaSt", trained, images, [0, 1, 2], torch.device("cpu"))
        assert view.peaks_on.tolist() == expected


def test_picture_has_a_row_per_image_and_two_columns_per_model(folder, capsys):
    compare_models.main([*arguments("bare", "last"), "--num-images", "2"])
    assert "2 of 3 images" in capsys.readouterr().out
    two = Image.open("out/picture.png")
    compare_models.main([*arguments("last"), "--num-images", "3"])
    one = Image.open("out/picture.png")
    assert two.format == "PNG"
    assert two.width / one.width == pytest.approx(5 / 3, rel=0.01)
    assert one.height > two.height


def test_of_imagenet_only_single_objects_are_shown(folder, capsys):
    path = Path("Annotations/CLS-LOC/val/1.xml")
    text = path.read_text()
    start, stop = text.index("<object>"), text.index("</annotation>")
    path.write_text(text[:stop] + text[start:stop] + text[stop:])
    compare_models.main([*arguments("last"), "--num-images", "2"])
    assert "2 of 2 images" in capsys.readouterr().out
    anything = ("--images", "val", "--boxes", "Annotations")
    compare_models.main([*arguments("last", images=anything), "--num-images", "2"])
    assert "2 of 3 images" in capsys.readouterr().out


def test_any_folder_without_boxes(folder, capsys):
    compare_models.main([*arguments("bare", images=("--images", "val")), "--num-images", "1", "--dataset-name", "mine"])
    assert "1 of 3 images of mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--model", "last=tiny.py@bare.pth"], "two models are called 'last'"),
        (["--num-images", "9"], "must be in [0, 3]"),
        (["--num-images", "0"], "at least 1"),
        (["--imagenet-label-dir", "nowhere"], "nowhere"),
        (["--boxes", "xml"], "go with --images"),
        (["--images", "val"], "not allowed with"),
        (["--figure", "picture.doc"], "must end in one of"),
    ],
)
def test_one_line_for_every_mistake(folder, capsys, extra, match):
    with pytest.raises(SystemExit) as stop:
        compare_models.main([*arguments("last"), "--num-images", "2", *extra])
    assert stop.value.code == 2
    assert match in capsys.readouterr().err


def test_label_dir_needs_its_root(folder, capsys):
    with pytest.raises(SystemExit):
        compare_models.main([*arguments("last", images=("--images", "val")), "--imagenet-label-dir", "Annotations"])
    assert "goes with --imagenet-root" in capsys.readouterr().err
