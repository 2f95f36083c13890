"""Config files name classes of their own trainer; every command reads them, wherever it lies and is started."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CODE = """
import sys
from last_vit.lazy_config import load_file
before = list(sys.path)
for name in ("conf.py", "configs/demo_synthetic.py"):
    print(load_file(f"{sys.argv[1]}/cls_pretrain/{name}").model._target_.__name__)
assert sys.path == before
"""


def test_a_config_is_read_without_its_trainers_folder_on_the_path(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(REPO)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.stdout.split() == ["ClassificationNet"] * 2, done.stderr
