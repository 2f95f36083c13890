"""visualize_votes.py: what is drawn is what the model's selection gives, and a picture comes out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import visualize_votes
from figure_style import HIT
from foreground_images import ForegroundImages
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from last_vit import last_select, vote_count
from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument

SCRIPT = Path(visualize_votes.__file__)
CLS, LAST = "CLS=timm:test_vit@random", "LaSt=timm:test_vit@random,pool=last,top_k=3,variant=paper"
SMALL = ["--image-size", "64", "--resize", "72", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four images with one mask each, of which the last is unknown wherever it is seen."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (90, 70 + 10 * i, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        mask = np.zeros((90, 70 + 10 * i), np.uint8)
        mask[10 : 40 + 5 * i, 15:60] = 1
        if i == 3:
            mask[:], mask[0, 0] = 255, 1  # its object is cropped away
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    return root


def view_of(folder: Path, text: str, chosen: list[int]) -> tuple[visualize_votes.VoteView, torch.Tensor]:
    """The view, and the model's patch tokens of the same images."""
    argument = parse_model_argument(text)
    trained = argument.load(64, 72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = ForegroundImages(folder / "images", transform, masks=folder / "masks")
    view = visualize_votes.compute_view(argument.name, trained, images, chosen, torch.device("cpu"))
    with torch.no_grad():
        inputs = torch.stack([images[index]["image"] for index in chosen])
        return view, dense_forward(trained.model, inputs).patch_tokens


@pytest.mark.parametrize(
    ("text", "top_k", "variant", "title"),
    [
        (CLS, 1, "release", "CLS: votes, K = 1 (the model is not pooled with LaSt)"),
        (LAST, 3, "paper", "LaSt: votes, K = 3"),
    ],
)
def test_view_is_what_the_selection_gives(folder, text, top_k, variant, title):
    chosen = [0, 2, 3]
    view, tokens = view_of(folder, text, chosen)
    votes = vote_count(last_select(tokens, top_k, variant=variant), 16)
    assert view.title == title
    assert torch.equal(view.votes, votes.unflatten(1, (4, 4)))
    for row, (image_votes, captions) in enumerate(zip(votes.tolist(), view.captions, strict=True)):
        front = (visible_object(folder, chosen[row]) > 0.5).flatten().tolist()
        shown = [[vote > level * max(image_votes) for vote in image_votes] for level in (0.5, 0.3, 0.2)]
        assert view.above[row].flatten(1).tolist() == shown
        for weights, caption in zip([*shown, image_votes], captions, strict=True):
            inside = sum(weight for weight, is_front in zip(weights, front, strict=True) if is_front)
            assert caption == ("" if row == 2 else f"object {100 * inside / sum(weights):.0f} %")


def visible_object(folder: Path, index: int) -> np.ndarray:
    """Share of each of the 4 x 4 patches that the mask covers, on the crop of 64 out of a shorter side of 72 pixels."""
    mask = Image.open(folder / f"masks/{index}.png")
    scale = 72 / min(mask.size)
    resized = mask.resize((int(mask.width * scale), int(mask.height * scale)), Image.Resampling.NEAREST)
    top, left = round((resized.height - 64) / 2), round((resized.width - 64) / 2)
    pixels = np.array(resized)[top : top + 64, left : left + 64] == 1
    return pixels.reshape(4, 16, 4, 16).mean(axis=(1, 3))


def test_selected_patches_keep_their_colours_and_the_rest_is_grey(folder):
    view, _ = view_of(folder, CLS, [0])
    figure = visualize_votes.draw_views([view])
    _, *levels, votes = figure.axes
    picture = view.images.pictures[0]
    for panel, mask in zip(levels, view.above[0], strict=True):
        shown = panel.images[0].get_array()
        inside = mask.repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
        np.testing.assert_allclose(shown[inside], picture[inside], atol=1e-6)
        np.testing.assert_allclose(shown[~inside], 0.35 * picture.mean(2)[~inside][:, None].repeat(3, 1), atol=1e-6)
        rim = panel.collections[0]
        assert tuple(rim.get_edgecolor()[0][:3]) == pytest.approx(to_rgb(HIT))
    np.testing.assert_allclose(votes.images[0].get_array(), view.votes[0])
    assert votes.images[0].norm.vmin == 0
    assert [panel.get_title().strip() for panel in figure.axes] == ["image", "> 50 %", "> 30 %", "> 20 %", "votes"]


def test_every_patch_selected_leaves_the_picture_as_it_is():
    axes = Figure().add_subplot()
    picture = np.random.default_rng(0).random((16, 16, 3))
    visualize_votes.show_selected(axes, picture, np.ones((16, 16)))
    np.testing.assert_allclose(axes.images[0].get_array(), picture)


def test_a_row_per_image_and_four_columns_per_model(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = ["--images", str(folder / "images"), "--masks", str(folder / "masks")]
    visualize_votes.main([*SMALL, "--model", CLS, "--model", LAST, *images, "--num-images", "2"])
    two = Image.open("results/votes.png")
    assert f"2 of the 4 images of {folder.name}/images" in capsys.readouterr().out
    visualize_votes.main([*SMALL, "--model", CLS, *images, "--num-images", "4", "--figure", "one.png"])
    one = Image.open("one.png")
    assert (two.width / one.width, two.height / one.height) == (pytest.approx(9 / 5, rel=0.01), 0.5)
    assert [path.name for path in Path("results").iterdir()] == ["votes.png"]


def test_models_of_other_sizes_and_grids_stand_side_by_side(folder, tmp_path, monkeypatch):
    """A ResNet's 2 x 2 and a ViT's 4 x 4 patches, without known objects."""
    monkeypatch.chdir(tmp_path)
    models = ["--model", CLS, "--model", "ResNet=timm:test_resnet@random"]
    visualize_votes.main([*SMALL, *models, "--images", str(folder / "images"), "--num-images", "1"])
    assert Image.open("results/votes.png").width > 1000


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--model", LAST.replace("=3", "=17")], "model 'LaSt' on 64 px: top_k must be in [1, 16] (number of patches)"),
        (["--model", CLS, "--num-images", "5"], "--num-images must be in [0, 4]"),
        (["--model", CLS, "--num-images", "0"], "must be at least 1"),
        (["--model", CLS, "--images", "empty"], "no image in empty"),
        (["--model", CLS, "--figure", "votes.docx"], "must end in one of"),
        (["--model", CLS, "--model", CLS], "two models are called 'CLS'"),
        ([], "--model"),
    ],
)
def test_one_line_for_every_mistake(folder, tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        visualize_votes.main([*SMALL, "--images", str(folder / "images"), "--num-images", "1", *arguments])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--num-images" in done.stdout
    assert done.stdout.endswith("False\n")
