"""The recorded command: the launcher that was used, the script from the repository's root, no path of this machine."""

import sys
from pathlib import Path

import evaluate_patch_hit
import pytest

from last_vit.results import hide_machine_paths, run_command

SCRIPT = Path(evaluate_patch_hit.__file__).resolve()
REPO = SCRIPT.parents[1]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


@pytest.mark.parametrize(
    ("folder", "typed"), [("", SCRIPT), ("", "visualization/evaluate_patch_hit.py"), ("/", SCRIPT)]
)
def test_script_is_named_from_the_repository(monkeypatch, folder, typed):
    monkeypatch.chdir(REPO / folder)
    monkeypatch.setattr(sys, "argv", [str(typed), "--row", "ViT-B/16, LaSt K=1"])
    assert run_command() == "python visualization/evaluate_patch_hit.py --row 'ViT-B/16, LaSt K=1'"


def test_script_outside_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "own.py")])
    assert run_command() == "python .../own.py"
    monkeypatch.chdir(tmp_path)
    assert run_command() == "python own.py"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert run_command() == "python -c"


def test_launcher_is_the_one_that_was_used(monkeypatch):
    """Two processes of detectron2's launcher are an argument; torchrun's are counted per machine."""
    monkeypatch.setattr(sys, "argv", ["lazy_train.py", "--num-gpus", "2"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert run_command() == "python lazy_train.py --num-gpus 2"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert run_command() == "torchrun --nproc-per-node=4 lazy_train.py --num-gpus 2"


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("/mnt/disk3/imagenet/", ".../imagenet"),
        ("/here/data/my folder", "data/my folder"),
        ("/here", "."),
        ("/hereafter/data", ".../data"),
        ("dataset.root=/mnt/imagenet", "dataset.root=.../imagenet"),
        ("train.init_checkpoint=/here/a.pth", "train.init_checkpoint=a.pth"),
        ("roots=['/mnt/a', '/here/b']", "roots=['.../a', 'b']"),
        ("open_clip:ViT-B-32//mnt/a.pt", "open_clip:ViT-B-32/.../a.pt"),
        ("--model=open_clip:ViT-B-32//here/a.pt", "--model=open_clip:ViT-B-32/a.pt"),
        ("open_clip:ViT-B-32/weights/a.pt", "open_clip:ViT-B-32/weights/a.pt"),
        ("file:///mnt/a", "file://.../a"),
        ("tcp://10.0.0.1:2333", "tcp://10.0.0.1:2333"),
        ("../data/imagenet", "../data/imagenet"),
        ("data//imagenet", "data//imagenet"),
        ("~/imagenet", "~/imagenet"),
        ("CLS / LaSt", "CLS / LaSt"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_no_path_of_this_machine(monkeypatch, typed, recorded):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/here"))
    assert hide_machine_paths(typed) == recorded
