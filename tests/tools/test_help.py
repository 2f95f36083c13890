"""--help of every track and picture answers without torch or a host library, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "detectron2", "open_clip", "timm", "matplotlib")
# Flags that each folder's scripts must show
FLAGS = {
    "cls_pretrain": ("--resume", "--row"),
    "clip": ("--per-class", "{sclip,naclip,clearclip,proxyclip}", "--point-in-box", "--help-open-clip"),
    "dino": ("--warmup_teacher_temp_epochs", "--pooling"),
    "ov_detection": ("--resume", "--vocabulary"),
    "visualization": ("--global-token", "--max-box-area", "--cutoff", "--fit", "--shares", "--k ", "--run", "--out "),
}


@pytest.mark.parametrize("folder", FLAGS)
def test_help_waits_for_nothing_heavy(folder):
    files = [path for path in (REPO / folder).glob("*.py") if path.stem != "convert_efficientnet_lite"]
    scripts = [path.name for path in files if '__name__ == "__main__"' in path.read_text()]
    code = f"import runpy, sys\nsys.modules.update(dict.fromkeys({HEAVY}))\nfor name in {scripts}:\n"
    code += "    sys.argv = [name, '--help']\n    try: runpy.run_path(name, run_name='__main__')\n"
    code += "    except SystemExit as stop: assert not stop.code, name\n"
    # in the scripts' own folder, where siblings are found as they are when one is started as a script
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO / folder, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(scripts)
    assert all(flag in done.stdout for flag in FLAGS[folder])
