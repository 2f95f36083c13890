"""tools/eval_seg_*.sh: what they say without a data set, and the command that they become."""

import pytest
from script_parts import TOOLS, run_script
from seg_layouts import find_split
from seg_settings import find_setting

SCRIPTS = {path.stem.removeprefix("eval_seg_"): path for path in sorted(TOOLS.glob("eval_seg_*.sh"))}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_becomes_one_command(tmp_path, name):
    for arguments in ([], ["--model", "m"], [tmp_path / "nowhere"]):
        done = run_script(f"eval_seg_{name}", *arguments)
        assert done.returncode == 2
        assert f"eval_seg_{name}.sh: error: " in done.stderr
    folder = tmp_path / "with blank"
    folder.mkdir()
    done = run_script(f"eval_seg_{name}", folder, "--model", "a=b c", "--table")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    protocol = words[words.index("--protocol") + 1]
    assert f"--dataset {name} --root {folder} --protocol {protocol} " in done.stdout
    assert done.stdout.endswith("--model a=b c --table\n")
    assert f"{find_split(name, 'val')[1]:,} images" in SCRIPTS[name].read_text()


def test_the_protocols_have_the_papers_image_size():
    """COCO-Stuff at SCLIP's 448 pixels is not what the paper's number is compared with."""
    sides = {
        name: find_setting(name, path.read_text().split(f" {name} ")[-1].split()[0]).short_side
        for name, path in SCRIPTS.items()
    }
    assert sides == {**dict.fromkeys(SCRIPTS, 336), "cityscapes": 560}
    assert list(SCRIPTS) == ["ade20k", "cityscapes", "coco_object", "coco_stuff", "context59", "voc20"]
