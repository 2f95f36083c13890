"""tools/eval_ov_*.sh: what they say when something is missing, and the command that they become."""

import os
import subprocess
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(name, *arguments):
    """Run a script with `echo` in place of python."""
    return subprocess.run(
        ["bash", str(TOOLS / f"eval_ov_{name}.sh"), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "RUN": "echo"},
        capture_output=True,
        text=True,
    )


def refused(name, text, *arguments):
    done = run(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"eval_ov_{name}.sh: error: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_coco(tmp_path):
    coco = tmp_path / "a coco"
    refused("coco", "first argument", "--config-file", "x.py")
    refused("coco", "make it with ov_detection/make_ov_coco.py", coco)
    (coco / "annotations").mkdir(parents=True)
    json = coco / "annotations/instances_val2017_all_2.json"
    json.write_text("{}")
    refused("coco", "val2017", coco)
    (coco / "val2017").mkdir()
    done = run("coco", coco, "--config-file", "x.py", "train.init_checkpoint=m.pth")
    assert done.returncode == 0, done.stderr
    words = f"--eval-only --config-file x.py train.init_checkpoint=m.pth dataloader.test.dataset.json_file={json}"
    assert done.stdout.endswith(
        f"ov_detection/lazy_train.py {words} dataloader.test.dataset.image_root={coco}/val2017\n"
    )


def test_lvis(tmp_path):
    refused("lvis", "first two arguments", tmp_path, "--config-file")
    refused("lvis", "no file", tmp_path, tmp_path)
    (tmp_path / "lvis_v1_val.json").write_text("{}")
    for missing in ("train2017", "val2017"):
        refused("lvis", missing, tmp_path, tmp_path)
        (tmp_path / missing).mkdir()
    done = run("lvis", tmp_path, tmp_path, "--config-file", "x.py")
    assert done.returncode == 0, done.stderr
    assert f"--eval-only --config-file x.py dataloader.test.dataset.json_file={tmp_path}/lvis_v1_val" in done.stdout
    assert done.stdout.endswith(f"image_root={tmp_path}\n")
