"""tools/eval_ov_*.sh: what they say when something is missing, and the command that they become."""

import pytest
from script_parts import run_script


@pytest.mark.parametrize(
    ("name", "json", "faults"),
    [
        ("coco", "annotations/instances_val2017_all_2.json", ["first argument", "make_ov_coco.py", "val2017"]),
        ("transfer coco", "annotations/instances_val2017.json", ["first two arguments", "no file", "val2017"]),
        ("transfer objects365", "objects365_val.json", ["first two arguments", "no file", "val"]),
        ("lvis", "lvis_v1_val.json", ["first two arguments", "no file", "train2017", "val2017"]),
    ],
)
def test_faults_and_command(tmp_path, name, json, faults):
    data = tmp_path / "a folder"
    folders = {"coco": [data], "lvis": [data, data]}.get(name, [*name.split()[1:], data])
    name = name.split()[0]
    rest = ["--config-file", "x.py", "train.init_checkpoint=m.pth"]
    for step, fault in enumerate(faults):
        done = run_script(f"eval_ov_{name}", *(folders if step else ()), *rest)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"eval_ov_{name}.sh: error: ")
        assert fault in done.stderr
        if step == 1:
            (data / json).parent.mkdir(parents=True)
            (data / json).write_text("{}")
        elif step > 1:
            (data / fault).mkdir()
    done = run_script(f"eval_ov_{name}", *folders, *rest)
    assert done.returncode == 0, done.stderr
    assert f"--eval-only {' '.join(rest)} dataloader.test.dataset.json_file={data / json} " in done.stdout
    images = data if name == "lvis" else data / faults[-1]
    assert done.stdout.endswith(f"dataloader.test.dataset.image_root={images}\n")
