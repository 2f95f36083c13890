"""tools/eval_corloc_*.sh: what they say when something is missing, and the command that they become."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
VOC = {"voc07": ("VOC2007", 5011), "voc12": ("VOC2012", 11540)}


def run(name, *arguments):
    """Run a script with `echo` in place of python."""
    return subprocess.run(
        ["bash", str(TOOLS / f"eval_corloc_{name}.sh"), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "RUN": "echo"},
        capture_output=True,
        text=True,
    )


def make_voc(root, number):
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/trainval.txt").write_text("".join(f"{i:06d}\n" for i in range(number)))


def make_coco(root, number):
    for folder in ("train2014", "annotations"):
        (root / folder).mkdir(parents=True)
    (root / "annotations/instances_train2014.json").write_text("{}")
    (root / "coco_20k_filenames.txt").write_text("".join(f"train2014/{i}.jpg\n" for i in range(number)))


@pytest.mark.parametrize("name", VOC)
def test_voc(tmp_path, name):
    folder, number = VOC[name]
    for arguments in ([], ["--model", "m"], [tmp_path / "nowhere"]):
        done = run(name, *arguments)
        assert done.returncode == 2
        assert f"eval_corloc_{name}.sh: error" in done.stderr
        assert folder in done.stderr
    make_voc(tmp_path / "few", 7)
    assert "names 7 images" in run(name, tmp_path / "few").stderr
    make_voc(tmp_path / "all images", number)
    done = run(name, tmp_path / "all images", "--model", "a=b c", "--table")
    assert done.returncode == 0, done.stderr
    assert f"--voc-root {tmp_path / 'all images'} --voc-split trainval" in done.stdout
    assert f"--dataset-name {name.upper()} trainval" in done.stdout
    assert done.stdout.endswith("--model a=b c --table\n")


def test_coco(tmp_path):
    make_coco(tmp_path / "few", 7)
    assert "names 7 images" in run("coco20k", tmp_path / "few").stderr
    make_coco(tmp_path / "all", 19817)
    done = run("coco20k", tmp_path / "all", "--model", "m")
    assert done.returncode == 0, done.stderr
    assert "--dataset-name COCO20k" in done.stdout
    assert done.stdout.endswith("--model m\n")
    for missing in ("coco_20k_filenames.txt", "annotations/instances_train2014.json"):
        (tmp_path / "all" / missing).unlink()
        done = run("coco20k", tmp_path / "all")
        assert (done.returncode, missing in done.stderr) == (2, True)
    assert run("coco20k").returncode == 2
