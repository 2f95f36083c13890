"""One run per folder, a second Ctrl-C, and evaluations that are stopped."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from last_vit.command_line import run_command_line
from last_vit.stopping import hold_folder, release_folders, resume_command

DEAD = 2**22 + 1  # above every process number


def lock(path, **changes):
    own = {"process": os.getpid(), "host": socket.gethostname(), "slurm_job": None}
    (path / "run.lock").write_text(json.dumps(own | changes))


@pytest.mark.parametrize(
    ("holder", "job", "is_free"),
    [
        ({}, None, False),
        ({"process": DEAD}, None, True),
        ({"process": DEAD, "host": "another"}, None, False),
        ({"process": DEAD, "host": "another", "slurm_job": "7"}, "7", True),  # queued again
        ({"process": DEAD, "host": "another", "slurm_job": "7"}, "8", False),
    ],
)
def test_a_folder_holds_one_living_run(tmp_path, monkeypatch, holder, job, is_free):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    lock(tmp_path, **holder)
    if not is_free:
        with pytest.raises(ValueError, match=rf"process \d+ on .*wait for it or stop it.* delete {tmp_path}/run.lock"):
            hold_folder(tmp_path)
        return
    hold_folder(tmp_path)
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    (tmp_path / "file").touch()
    release_folders()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_half_a_lock_is_refused_in_words(tmp_path):
    (tmp_path / "run.lock").write_text('{"proc')
    with pytest.raises(ValueError, match="delete"):
        hold_folder(tmp_path)


def test_a_second_ctrl_c_ends_at_once():
    script = (
        "import os, signal, time\n"
        "from last_vit.stopping import stop_signal, stopping_at_step_borders\n"
        "with stopping_at_step_borders():\n"
        "    for pause in (0, 1.1, 0):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print(stop_signal(), flush=True)\n"
        "        time.sleep(pause)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT  # 130 in a shell
    assert (done.stdout, done.stderr) == ("2\n2\n", "")  # the second within a second is the first, passed on


@pytest.mark.parametrize(
    ("number", "status", "how"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_an_evaluation_ends_with_one_line(capsys, number, status, how):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(SystemExit) as stop:
            run_command_line(argparse.ArgumentParser("x.py"), lambda _: os.kill(os.getpid(), number), [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == status
    assert capsys.readouterr().err == f"x.py: stopped by {how}\n"


def test_resume_command(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["x.py", "--resume", "old.pt", "--name=a", "b c"])
    assert resume_command("--resume=latest", "--name=d") == "python x.py --resume=latest --name=d 'b c'"
    monkeypatch.setattr(sys, "argv", ["x.py", "--resume", "key=value"])
    assert resume_command("--resume") == "python x.py --resume key=value"
