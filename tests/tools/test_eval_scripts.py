"""tools/eval_*.sh: they run what is there, name what is not, stop with a reason. Synthetic images, random weights."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
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
    """Each by its command, with flags that it takes; what the commands do has tests of its own."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    variables = {"RUN": "python", "RUNS": "a b", "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    done = call("reproduce_analysis.sh", "imagenet", "out", "A=vit.py@random,pool=cls", **variables)
    assert done.returncode == 0, done.stderr
    found = {}
    for script, *flags in (json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")):
        args = import_module(Path(script).stem).main.build_parser().parse_args(flags)
        assert (args.model, getattr(args, "run", None)) in ((["A=vit.py@random,pool=cls"], None), (None, ["a", "b"]))
        sources = [getattr(args, key, None) for key in ("imagenet_root", "images", "run")]
        assert sum(source is not None for source in sources) == 1
        found[Path(script).stem] = str(getattr(args, "figure", getattr(args, "out", "")))
    figures = {
        "visualize_patch_score_distribution": "2a_scores",
        "probe_masking": "2b_masking",
        "plot_dynamics": "3_dynamics",
        "visualize_votes": "5_votes",
        "visualize_norms": "6_norms",
        "visualize_pca": "7_pca",
    }
    assert found == {name: f"out/figure_{figure}.png" for name, figure in figures.items()} | {
        "evaluate_patch_hit": "",
        "evaluate_layers": "out/layers.png",
        "visualize_token_selection": "out/token_selection.png",
        "make_report": "out/report",
    }
    missing = call("reproduce_analysis.sh", "nowhere", "out", "A=vit.py@random")
    assert missing.returncode == 2
    assert "no folder nowhere/val" in missing.stderr
