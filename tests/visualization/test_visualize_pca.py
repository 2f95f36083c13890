"""visualize_pca.py end to end: which patches are coloured and how, its records, its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import visualize_pca
from foreground_images import ForegroundImages
from patch_foreground import patch_foreground
from patch_pca import fit_patch_pca
from PIL import Image

from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

SCRIPT = Path(visualize_pca.__file__)
VIT, RESNET = "ViT=timm:test_vit@random", "ResNet=timm:test_resnet@random"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four images with a mask each; the last one's object is smaller than a patch."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 72, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        mask = np.zeros((80, 72), np.uint8)
        mask[8:70, 8 + 4 * i : 60] = 1
        if i == 3:
            mask[:] = 0
            mask[40:44, 40:44] = 1
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    return root


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns its views and its records by model."""
    monkeypatch.chdir(tmp_path)
    views = []
    draw = visualize_pca.draw_views
    monkeypatch.setattr(visualize_pca, "draw_views", lambda found: views.extend(found) or draw(found))

    def call(*arguments: str, models: tuple[str, ...] = (VIT,)) -> tuple[list, dict[str, dict]]:
        chosen = [part for model in models for part in ("--model", model)]
        small = ["--image-size", "64", "--resize", "64", "--num-workers", "0", "--device", "cpu", "--batch-size", "3"]
        visualize_pca.main([*chosen, "--images", str(folder / "images"), *small, *arguments])
        records = [json.loads(path.read_text()) for path in Path("results").glob("*.json")]
        return views, {record["config"]["model"]: record for record in records}

    return call


def by_hand(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens [4, N, D], foreground by mask and patch score [4, N] of the random ViT."""
    trained = parse_model_argument(VIT).load(64, 64)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = ForegroundImages(folder / "images", transform, masks=folder / "masks")
    samples = [images[i] for i in range(4)]
    with torch.no_grad():
        out = dense_forward(trained.model, torch.stack([sample["image"] for sample in samples]))
    foreground = torch.stack([sample["foreground"] for sample in samples])
    return (
        out.patch_tokens,
        patch_foreground(foreground, out.grid_hw)[0],
        patch_score(out.patch_tokens, out.global_token),
    )


def test_a_fit_per_image_colours_the_annotated_patches(run, folder, capsys):
    (view,), records = run("--masks", str(folder / "masks"))
    tokens, foreground, _ = by_hand(folder)
    maps = view.maps.flatten(1, 2)
    assert foreground.sum(1).tolist() == [10, 8, 8, 0]
    explained = []
    for i in range(3):
        mask = foreground[i]
        assert torch.equal(maps[i, :, 3] == 1, mask)
        pca = fit_patch_pca(tokens[i][mask])
        assert torch.allclose(maps[i][mask, :3], pca.rgb(tokens[i][mask]), atol=1e-4)
        explained.append(pca.explained)
    assert not maps[3].any()
    assert not maps[~(maps[..., 3] == 1)].any()
    record = records["timm:test_vit"]
    assert (record["n_images"], record["config"]["num_too_few_patches"]) == (3, 1)
    expected = 100 * torch.stack(explained).mean(0)
    assert [record["metrics"][f"explained_{i}"] for i in (1, 2, 3)] == pytest.approx(expected.tolist(), abs=1e-2)
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["3", "1"]  # images, with too few patches


def test_a_fit_on_the_set_is_one_fit_for_all_images(run, folder):
    (view,), records = run("--masks", str(folder / "masks"), "--fit", "set", "--num-images", "2", "--seed", "1")
    tokens, foreground, _ = by_hand(folder)
    whole = fit_patch_pca(tokens[foreground])
    std = whole.project(tokens[foreground]).std(dim=0, correction=0)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))[:2].sort().values
    for row, image in enumerate(order.tolist()):
        mask, found = foreground[image], view.maps.flatten(1, 2)[row]
        expected = (whole.project(tokens[image][mask]) / std / 4 + 0.5).clamp(0, 1)
        assert torch.allclose(found[mask, :3], expected.float(), atol=1e-4)
    record = records["timm:test_vit"]
    assert record["n_images"] == 4
    assert record["dataset"].endswith("fitted per set")


def test_without_annotations_the_patch_score_decides(run, folder):
    views, records = run(models=(VIT, RESNET))
    _, _, score = by_hand(folder)
    assert torch.equal(views[0].maps.flatten(1, 2)[..., 3] == 1, score > score.mean(dim=1, keepdim=True))
    assert records["timm:test_resnet"]["config"]["foreground"] == "patch score above its mean"
    assert min(Image.open("results/pca.png").size) > 300


def test_the_picture_keeps_hard_edges(run, folder):
    (view,), _ = run("--masks", str(folder / "masks"))
    panel = visualize_pca.draw_views([view]).axes[1]
    dark, colours = panel.get_images()
    assert colours.get_interpolation() == "nearest"
    assert colours.get_extent() == dark.get_extent()
    assert dark.get_array().max() <= 0.35
    assert np.array_equal(np.asarray(colours.get_array()), view.maps[0].numpy())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--num-images", "5"], "--num-images must be in [0, 4]"),
        (["--num-images", "0"], "must be at least 1"),
        (["--fit", "batch"], "invalid choice"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert match in message
    assert "Traceback" not in message


@pytest.mark.parametrize(("fit", "match"), [("image", "none of the 2 images has 3"), ("set", "at least 3 tokens")])
def test_no_foreground_at_all_is_an_error(run, folder, tmp_path, capsys, fit, match):
    for name in ("few", "empty"):
        (tmp_path / name).mkdir()
    for i in range(2):
        Image.open(folder / f"images/{i}.png").save(tmp_path / f"few/{i}.png")
        Image.fromarray(np.zeros((80, 72), np.uint8)).save(tmp_path / f"empty/{i}.png")
    with pytest.raises(SystemExit):
        run("--images", "few", "--masks", "empty", "--num-images", "2", "--fit", fit)
    assert match in capsys.readouterr().err


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--fit" in done.stdout
    assert done.stdout.endswith("False\n")
