"""The wheel, installed into an empty folder away from the repository: one command does what its script does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from last_vit.command_line import COMMANDS

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("last_vit", "cls_pretrain", "dino", "clip", "ov_detection", "visualization", "tools")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder, of which PYTHONPATH and the console script are to be had."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(REPO / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder / "source")
    offline = ["--no-index", "--no-deps"]
    for command in (
        [*PIP, "wheel", *offline, "--no-build-isolation", "-w", folder, folder / "source"],
        [*PIP, "install", *offline, "--target", folder / "site", "--find-links", folder, "last-vit"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


def run(installed, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [installed / "bin/last-vit", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_photo_is_explored_away_from_the_repository(installed, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    done = run(installed, tmp_path, "explore", "photo.png", "--model", "timm:test_vit@random", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "written output/explore/photo.png\n"), done.stderr
    assert Image.open(tmp_path / "output/explore/photo.png").width > 1000
    wrong = run(installed, tmp_path, "explore", "none.png", "--model", "timm:test_vit@random")
    assert (wrong.returncode, "none.png" in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)


def test_every_command_is_there(installed, tmp_path):
    listed = run(installed, tmp_path).stdout
    for name, script in COMMANDS.items():
        assert f"  {name} " in listed
        assert f"usage: {Path(script).name}" in run(installed, tmp_path, name, "--help").stdout
    wrong = run(installed, tmp_path, "train")
    assert (wrong.returncode, wrong.stderr) == (2, "last-vit: error: there is no command 'train'\n")
