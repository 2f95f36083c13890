"""visualize_patch_score_distribution.py end to end: numbers against pairs counted by hand, pictures and errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import visualize_patch_score_distribution
from foreground_images import ForegroundImages
from patch_foreground import patch_foreground
from PIL import Image
from score_figures import ScoreView, draw_distributions, smooth

from last_vit import last_pool
from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

SCRIPT = Path(visualize_patch_score_distribution.__file__)
VIT, RESNET = "ViT=timm:test_vit@random", "ResNet=timm:test_resnet@random"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six images, wide and high, with a mask and a box each; the last has no object."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "boxes"):
        (root / name).mkdir()
    for i in range(6):
        width, height = (60 + 12 * i, 70) if i % 2 else (66, 80 + 9 * i)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        mask = np.zeros((height, width), np.uint8)
        if i < 5:
            mask[10 : 40 + 5 * i, 15:50] = 1
        Image.fromarray(mask).save(root / f"masks/{i}.png")
        box = f"<xmin>15</xmin><ymin>10</ymin><xmax>50</xmax><ymax>{40 + 5 * i}</ymax>"
        found = f"<object><name>thing</name><bndbox>{box}</bndbox></object>" if i < 5 else ""
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (root / f"boxes/{i}.xml").write_text(f"<annotation>{size}{found}</annotation>")
    return root


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns the records by model."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, models: tuple[str, ...] = (VIT,)) -> dict[str, dict]:
        chosen = [part for model in models for part in ("--model", model)]
        small = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "4"]
        images = [] if "--images" in arguments else ["--images", str(folder / "images")]
        visualize_patch_score_distribution.main([*chosen, *images, *small, *arguments])
        records = [json.loads(path.read_text()) for path in Path("results").glob("*.json")]
        return {record["config"]["model"]: record for record in records}

    return call


def by_hand(folder: Path, text: str, token: str) -> dict[str, float]:
    """AUROC by pairs, and background among the best tenth (2 of 16 patches), image by image."""
    trained = parse_model_argument(text).load(64, 72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    aurocs, tops, shares = [], [], []
    for sample in ForegroundImages(folder / "images", transform, masks=folder / "masks"):
        with torch.no_grad():
            out = dense_forward(trained.model, sample["image"][None])
        query = {"mean": out.patch_tokens.mean(1), "trained": out.global_token, "last": last_pool(out.patch_tokens, 1)}
        score = patch_score(out.patch_tokens, query[token])[0].tolist()
        front = patch_foreground(sample["foreground"][None], out.grid_hw)[0][0].tolist()
        objects, others = ([s for s, f in zip(score, front, strict=True) if f is kind] for kind in (True, False))
        if objects and others:
            aurocs.append(np.mean([a > b for a in objects for b in others]))
            best = sorted(range(len(score)), key=lambda p: -score[p])[: -(-len(score) // 10)]
            tops.append(np.mean([not front[p] for p in best]))
            shares.append(len(others) / len(score))
    found = {"auroc": aurocs, "background_top_10": tops, "background_share": shares}
    return {name: 100 * np.mean(values) for name, values in found.items()} | {"images": len(aurocs)}


@pytest.mark.parametrize("token", ["trained", "mean", "last"])
def test_numbers_against_a_computation_by_hand(run, folder, token, capsys):
    record = run("--masks", str(folder / "masks"), "--dataset-name", "mini", "--global-token", token)["timm:test_vit"]
    exact = by_hand(folder, VIT, token)
    assert exact["images"] == record["n_images"] == 5
    for name in ("auroc", "background_top_10", "background_share"):
        assert record["metrics"][name] == pytest.approx(exact[name], abs=1e-3)
    words = "last K=1 release" if token == "last" else token  # noqa: S105
    assert record["dataset"] == f"mini, 64 px, {words} token"
    assert (record["config"]["num_no_foreground"], record["config"]["objects"]) == (1, "masks")
    printed = capsys.readouterr().out
    assert f"{exact['auroc']:.1f}" in printed
    assert "ViT: 1 no object patch\n" in printed
    assert "written results/patch_score_distribution.png" in printed


def test_boxes_are_the_masks_here(run, folder):
    """The masks are filled boxes, so that both say the same."""
    masks = run("--masks", str(folder / "masks"))["timm:test_vit"]
    boxes = run("--boxes", str(folder / "boxes"))["timm:test_vit"]
    assert boxes["metrics"] == masks["metrics"]
    assert boxes["config"]["objects"] == "boxes"


def test_two_models_one_picture_and_one_record_each(run, folder):
    arguments = ["--masks", str(folder / "masks"), "--figure", "out/a.png", "--output", "mine", "--table"]
    records = run(*arguments, models=(VIT, RESNET))
    assert {name: record["row"] for name, record in records.items()} == {
        "timm:test_vit": "ViT",
        "timm:test_resnet": "ResNet",
    }
    assert all(record["table"] == "score_distribution" for record in records.values())
    assert {path.name.split("_")[0] for path in Path("results").iterdir()} == {"mine"}
    run(*arguments[:2], "--figure", "out/b.svg")
    wide = Image.open("out/a.png").size
    assert wide[0] > 2 * wide[1]
    assert "<svg" in Path("out/b.svg").read_text()[:600]


def test_the_picture_shows_what_it_is_given():
    stats = {"auroc": 41.5, "background_share": 63.4}
    stats |= {f"background_top_{percent}": 60.0 + percent / 10 for percent in (1, 5, 10, 50)}
    edges, densities = np.linspace(0, 1, 121), np.random.default_rng(0).random((2, 120))
    views = [ScoreView(name, stats, edges, *densities) for name in "abcd"]
    figure = draw_distributions(views)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list("abcd")
    assert len({axes.get_ylim() for axes in shown}) == len({axes.get_xlim() for axes in shown}) == 1
    text = shown[0].texts[0].get_text()
    assert "AUROC 41.5 %" in text
    assert "60.1 / 60.5 / 61.0 / 65.0 and 63.4 %" in text
    lines = {patch.get_label(): patch.get_data().values for patch in shown[0].patches}
    np.testing.assert_allclose(lines["object patches"], smooth(densities[0]))
    np.testing.assert_allclose(lines["background patches"], smooth(densities[1]))


def test_smoothing_is_the_releases_kernel_and_loses_nothing():
    peak = np.zeros(9)
    peak[4] = 9
    assert smooth(peak).tolist() == [0, 0, 1, 2, 3, 2, 1, 0, 0]
    edge = np.array([9.0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(smooth(edge), [5, 3, 1, 0, 0, 0])
    noise = np.random.default_rng(0).random(120)
    assert smooth(noise).sum() == pytest.approx(noise.sum())


@pytest.mark.parametrize(
    ("arguments", "models", "match"),
    [
        ((), (VIT,), "give --boxes or --masks"),
        (("--masks", "MASKS", "--global-token", "cls"), (VIT, RESNET), "model 'ResNet': this model has no class token"),
        (("--masks", "nowhere"), (VIT,), "nowhere"),
        (("--masks", "MASKS", "--boxes", "BOXES"), (VIT,), "give one of the two"),
        (("--masks", "MASKS", "--images", "nowhere"), (VIT,), "nowhere does not exist"),
        (("--masks", "MASKS", "--images", "empty"), (VIT,), "no image in empty"),
        (("--masks", "MASKS"), (VIT, VIT), "two models are called 'ViT'"),
        (("--masks", "MASKS"), ("ViT=timm:test_vit",), "no weights"),
        (("--masks", "MASKS"), (f"{VIT},pool=last,top_k=17",), "model 'ViT': "),
        (("--masks", "black"), (VIT,), "model 'ViT': no image shows both object and background"),
        (("--masks", "small"), (VIT,), "masks must have their image's size"),
    ],
)
def test_one_line_for_every_mistake(run, folder, capsys, arguments, models, match):
    Path("empty").mkdir()
    for name in ("black", "small"):
        shutil.copytree(folder / "masks", name)
        for path in Path(name).iterdir():
            size = Image.open(path).size
            Image.new("L", size if name == "black" else (5, 5)).save(path)
    known = {"MASKS": str(folder / "masks"), "BOXES": str(folder / "boxes")}
    with pytest.raises(SystemExit) as stop:
        run(*(known.get(argument, argument) for argument in arguments), models=models)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("visualize_patch_score_distribution.py: error: ")
    assert match in lines[0]


def test_broken_images_stop_or_are_counted(run, folder, capsys):
    shutil.copytree(folder, "set")
    Path("set/images/1.png").write_bytes(Path("set/images/1.png").read_bytes()[:200])
    arguments = ["--images", "set/images", "--masks", "set/masks"]
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "1.png" in capsys.readouterr().err
    record = run(*arguments, "--skip-broken")["timm:test_vit"]
    assert (record["n_images"], record["config"]["left_out"]) == (4, {"broken image": 1})


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--global-token" in done.stdout
    assert done.stdout.endswith("False\n")
