"""Scripts as processes of their own: the shell's with `echo` in place of python, and any two under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / "tools"


def run_script(name, *arguments):
    """What a shell script of tools/ refuses, or the command that it becomes."""
    command, environment = ["bash", str(TOOLS / f"{name}.sh"), *map(str, arguments)], {"PATH": os.environ["PATH"]}
    return subprocess.run(command, env={**environment, "RUN": "echo"}, capture_output=True, text=True)


def run_two(script, *arguments, **environment):
    """What a script, by its path in the repository, says under torchrun with two gloo processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **environment}
    command = [*launcher, str(REPO / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


def run_two_ranks(script, *arguments):
    """The same as another launcher starts it, with a rank each, which meet at --dist_url."""
    command = [sys.executable, str(REPO / script), *map(str, arguments), "--dist_url", f"file://{Path.cwd()}/meeting"]
    environment = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*command, "--local_rank", rank], env={**environment, "RANK": rank}, **pipes) for rank in "01"
    ]
    for process in started:
        error = process.communicate(timeout=240)[1]
        assert process.returncode == 0, error
