"""visualize_norms.py end to end: its numbers against a computation by hand, its pictures, its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import visualize_norms
from foreground_images import ForegroundImages
from norm_figures import draw_norms
from patch_foreground import patch_foreground
from PIL import Image

from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.patch_scores import patch_score

SCRIPT = Path(visualize_norms.__file__)
VIT, RESNET = "ViT=timm:test_vit@random", "ResNet=timm:test_resnet@random"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five images with one mask each, of which the last has no object."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(5):
        width, height = 70 + 10 * i, 90 - 5 * i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        mask = np.zeros((height, width), np.uint8)
        if i < 4:
            mask[10 : 40 + 5 * i, 15:60] = 1
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    return root


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns the records by model."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, models: tuple[str, ...] = (VIT,)) -> dict[str, dict]:
        chosen = [part for model in models for part in ("--model", model)]
        small = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "2"]
        visualize_norms.main([*chosen, "--images", str(folder / "images"), *small, *arguments])
        records = [json.loads(path.read_text()) for path in Path("results").glob("*.json")]
        return {record["config"]["model"]: record for record in records}

    return call


def by_hand(folder: Path) -> dict[str, np.ndarray]:
    """Norms, scores and foreground of every image of the random ViT, one image at a time."""
    from last_vit.models import parse_model_argument

    trained = parse_model_argument(VIT).load(64, 72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = ForegroundImages(folder / "images", transform, masks=folder / "masks")
    found: dict[str, list] = {"norms": [], "scores": [], "foreground": []}
    model, seen = trained.model, []
    model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for sample in images:
            out = dense_forward(model, sample["image"][None])
            found["norms"].append(seen.pop()[0, model.num_prefix_tokens :].double().norm(dim=1).numpy())
            found["scores"].append(patch_score(out.patch_tokens, out.global_token)[0].numpy())
            found["foreground"].append(patch_foreground(sample["foreground"][None], out.grid_hw)[0][0].numpy())
    return {name: np.stack(values) for name, values in found.items()}


def test_numbers_against_a_computation_by_hand(run, folder, capsys):
    record = run("--masks", str(folder / "masks"), "--dataset-name", "mini", "--cutoff", "2.3")["timm:test_vit"]
    exact, metrics = by_hand(folder), record["metrics"]
    norms, front = exact["norms"], exact["foreground"]
    assert record["n_images"] == 5
    assert record["dataset"] == "mini, 64 px, cut-off 2.3"
    assert metrics["norm_median"] == pytest.approx(np.median(norms), rel=0.01)
    assert metrics["norm_max"] == pytest.approx(norms.max(), rel=0.01)
    assert metrics["outlier_share"] == pytest.approx(100 * (norms >= 2.3).mean(), abs=1e-4)
    assert 0 < metrics["outlier_share"] < 100
    assert metrics["norm_ratio"] == pytest.approx(norms[front].mean() / norms[~front].mean(), abs=1e-4)
    higher = [a[f].mean() > a[~f].mean() for a, f in zip(norms[:4], front[:4], strict=True)]
    assert metrics["foreground_higher"] == pytest.approx(100 * np.mean(higher))
    per_image = [np.corrcoef(a, b)[0, 1] for a, b in zip(norms, exact["scores"], strict=True)]
    assert metrics["correlation"] == pytest.approx(np.mean(per_image), abs=1e-4)
    assert (record["config"]["num_split_images"], record["config"]["num_patches"]) == (4, 80)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ViT: 5 images, 80 patches", "high norm", "fg / bg", "results/norms.png"))


def test_two_models_one_picture_and_their_examples(run, folder):
    records = run("--masks", str(folder / "masks"), "--figure", "out/n.png", "--examples", "3", models=(VIT, RESNET))
    assert {record["config"]["num_layers"] for record in records.values()} == {1, 6}
    sizes = [Image.open(path).size for path in (Path("out/n.png"), Path("out/n_examples.png"))]
    assert all(min(size) > 300 for size in sizes)
    assert all(record["dataset"].endswith("cut-off fitted") for record in records.values())


def test_without_annotations_there_is_no_split(run, capsys):
    record = run("--examples", "0")["timm:test_vit"]
    assert not {"norm_ratio", "outliers_in_background", "num_images"} & record["metrics"].keys()
    assert {"high_norm", "outlier_share", "cutoff", "correlation"} <= record["metrics"].keys()
    assert "fg / bg" not in capsys.readouterr().out
    assert [path.name for path in Path("results").glob("*.png")] == ["norms.png"]


def test_the_picture_shows_what_was_counted(run, folder, monkeypatch):
    views = []
    monkeypatch.setattr("norm_figures.draw_norms", lambda v: views.extend(v) or draw_norms(v))
    run("--masks", str(folder / "masks"), "--examples", "0", models=(VIT, RESNET))
    vit, resnet = views
    assert vit.layers.shape == (6, len(vit.edges) - 1)
    assert (vit.layers.sum(1) == 80).all()
    assert vit.normed.sum() == vit.joint[2].sum() == 80
    assert sum(part.sum() for part in vit.split) == 80
    assert resnet.layers.shape[0] == 1
    assert resnet.normed is None
    axes = draw_norms(views).axes
    bars = [patch for patch in axes[1].patches if patch.get_fill()]
    assert len(bars) == 2  # foreground and background
    assert sum(bars[0].get_data().values) == pytest.approx(100)
    assert "high norm: no" in axes[1].get_title()


def test_torchrun_gives_the_same_numbers(run, folder):
    alone = run("--masks", str(folder / "masks"))["timm:test_vit"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    arguments = [
        "--model",
        VIT,
        "--images",
        str(folder / "images"),
        "--masks",
        str(folder / "masks"),
        "--output",
        "two",
    ]
    small = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "2"]
    subprocess.run(
        [*launcher, str(SCRIPT), *arguments, *small],
        check=True,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=180,
    )
    (two,) = [json.loads(path.read_text()) for path in Path("results").glob("two*.json")]
    assert (two["n_images"], two["num_processes"]) == (5, 2)
    assert two["metrics"] == pytest.approx(alone["metrics"], abs=2e-4)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--images", "nowhere"], "nowhere"),
        (["--masks", "nowhere"], "nowhere"),
        (["--cutoff", "0"], "cutoff must be a norm between"),
        (["--examples", "6"], "--examples must be in [0, 5]"),
        (["--examples", "-1"], "--examples must be in [0, 5]"),
        (["--model", "B=timm:vit_nope@random"], "vit_nope"),
        (["--figure", "out/norms.doc"], "must end in one of .png, .pdf, .svg"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, arguments, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message


def test_a_map_without_norms_asks_for_a_cutoff(run, monkeypatch, capsys):
    monkeypatch.setattr("last_vit.metrics.patch_norms.token_norms", lambda tokens: torch.zeros(tokens.shape[:2]))
    with pytest.raises(SystemExit):
        run()
    assert "model 'ViT': half of the patches have a norm below" in capsys.readouterr().err


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--cutoff" in done.stdout
    assert done.stdout.endswith("False\n")
