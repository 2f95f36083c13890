"""tools/eval_ov_*.sh: what they say when something is missing, and the command that they become."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(name, *arguments):
    """Run a script with `echo` in place of python."""
    command = ["bash", str(TOOLS / f"eval_ov_{name}.sh"), *map(str, arguments)]
    return subprocess.run(command, env={"PATH": os.environ["PATH"], "RUN": "echo"}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "json", "faults"),
    [
        ("coco", "annotations/instances_val2017_all_2.json", ["first argument", "make_ov_coco.py", "val2017"]),
        ("lvis", "lvis_v1_val.json", ["first two arguments", "no file", "train2017", "val2017"]),
    ],
)
def test_faults_and_command(tmp_path, name, json, faults):
    data = tmp_path / "a folder"
    folders = [data] if name == "coco" else [data, data]
    rest = ["--config-file", "x.py", "train.init_checkpoint=m.pth"]
    for step, fault in enumerate(faults):
        done = run(name, *(folders if step else ()), *rest)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"eval_ov_{name}.sh: error: ")
        assert fault in done.stderr
        if step == 1:
            (data / json).parent.mkdir(parents=True)
            (data / json).write_text("{}")
        elif step > 1:
            (data / fault).mkdir()
    done = run(name, *folders, *rest)
    assert done.returncode == 0, done.stderr
    assert f"--eval-only {' '.join(rest)} dataloader.test.dataset.json_file={data / json} " in done.stdout
    images = data / "val2017" if name == "coco" else data
    assert done.stdout.endswith(f"dataloader.test.dataset.image_root={images}\n")
