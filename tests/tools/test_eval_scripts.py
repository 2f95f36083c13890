"""tools/eval_*.sh: they run what is there, name what is not, stop with a reason. Synthetic images, random weights."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from torchvision.models import vit_b_16

from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.models import build_model, parse_model_argument
from last_vit.results import read_results

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPTS = [*sorted(TOOLS.glob("eval_*.sh")), TOOLS / "reproduce_analysis.sh"]


def call(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "RUN": sys.executable, **variables}
    return subprocess.run(
        [str(TOOLS / script), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.fixture
def imagenet(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_imagenet(SyntheticObjects(4, "val", image_size=48, num_classes=2), tmp_path / "imagenet")
    return tmp_path / "imagenet"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(path):
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text()
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(path)], check=True)


def test_point_in_box_of_what_is_there(imagenet, tmp_path):
    """The released file, small because its matrices are one row each, repeated, and a ConvNet."""
    (tmp_path / "weights").mkdir()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vit_b_16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    rows = {
        name: torch.randn(shape[-1:] if len(shape) == 2 else shape, generator=generator)
        for name, shape in shapes.items()
    }
    released = {f"model.{name}": row.mul(0.1).expand(shapes[name]) for name, row in rows.items()}
    torch.save({"model": released, "trainer": {}, "iteration": 189_999}, "weights/ViT_190k.pth")
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), "weights/efficientnet_lite0.pth")
    options = ["--num-workers", "0", "--device", "cpu", "--max-box-area", "none", "--dataset-name", "synthetic"]
    done = call("eval_point_in_box.sh", str(imagenet), *options)
    assert done.returncode == 0, done.stderr
    for name in ("resnet50-0676ba61.pth", "vit_b_16-c867db91.pth", "dino_deitsmall16_pretrain.pth", "ViT-B-16.pt"):
        assert f"left out: weights/{name} is not there" in done.stdout
    assert "\nViT-B/16, LaSt, released " in done.stdout
    assert "\nEfficientNet-Lite0 " in done.stdout
    records = read_results(Path("output/point_in_box"))
    assert {(each.config["model"], each.config["global_token"]) for each in records} == {
        ("torchvision:vit_b_16", "cls"),
        ("torchvision:vit_b_16", "trained"),
        ("timm:tf_efficientnet_lite0", "trained"),
    }


def test_the_files_are_loaded_as_what_they_are(imagenet, tmp_path):
    """Every line of the list gives a model text that the table understands."""
    (tmp_path / "files").mkdir()
    lines = [line for line in (TOOLS / "eval_point_in_box.sh").read_text().splitlines() if line.startswith("add ")]
    for line in lines:
        (tmp_path / "files" / line.split()[1]).touch()
    Path("echo.sh").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" >>said.txt\n')
    Path("echo.sh").chmod(0o755)
    done = call("eval_point_in_box.sh", "--table", RUN="./echo.sh", WEIGHTS="files", IMAGENET_ROOT=str(imagenet))
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout
    said = Path("said.txt").read_text().splitlines()
    assert said[-1] == "--table"
    models = [parse_model_argument(text) for flag, text in pairwise(said) if flag == "--model"]
    assert len(models) == len({model.name for model in models}) == len(lines) == 6
    for model in models:
        if model.checkpoint is None:
            arch, _, file = model.spec.removeprefix("open_clip:").partition("/")
            assert (arch in open_clip.list_models(), Path(file).is_file()) == (True, True)
        else:
            assert Path(model.checkpoint).is_file()
            with torch.device("meta"):
                build_model(model.spec)


def test_no_imagenet(imagenet):
    done = call("eval_point_in_box.sh")
    assert (done.returncode, "no ImageNet" in done.stderr) == (2, True)
    done = call("eval_point_in_box.sh", "nowhere")
    assert (done.returncode, "no folder nowhere" in done.stderr) == (2, True)


def test_no_weights(imagenet):
    done = call("eval_point_in_box.sh", str(imagenet), WEIGHTS="nowhere")
    assert done.returncode == 1
    assert "left out: nowhere/ViT_190k.pth is not there" in done.stdout
    assert "no weights in nowhere" in done.stderr
    assert not Path("results").exists()


def test_every_figure_of_the_analysis(imagenet, tmp_path):
    """One small classifier of random weights; the run for figure 3 is a log of two evaluations."""
    (tmp_path / "vit.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from torchvision.models import VisionTransformer\n"
        "from last_vit.data.transforms import EvalTransform\n"
        "model = L(VisionTransformer)(\n"
        "    image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2\n"
        ")\n"
        "dataloader = dict(test=dict(dataset=dict(transform=L(EvalTransform)(resize=32, crop=32))))\n"
    )
    metrics = ["iteration", "acc1", "acc5", "point_in_box", "point_in_box_random", "point_in_box_center"]
    lines = [dict(zip(metrics, (step, 10.0 + step, 50.0, 40.0, 30.0, 60.0), strict=True)) for step in (10, 20)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = call("reproduce_analysis.sh", "imagenet", "out", "A=vit.py@random,pool=cls", RUNS="run", PATH=binaries)
    assert done.returncode == 0, done.stderr
    found = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    figures = ("2a_scores", "2b_masking", "3_dynamics", "5_votes", "6_norms", "7_pca")
    assert found >= {
        *(f"figure_{name}.png" for name in figures),
        "token_selection.png",
        "layers.png",
        "report/index.html",
    }
    missing = call("reproduce_analysis.sh", "nowhere", "out", "A=vit.py@random")
    assert missing.returncode == 2
    assert "no folder nowhere/val" in missing.stderr
