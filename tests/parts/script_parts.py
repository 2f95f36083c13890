"""Shell scripts of tools/ with `echo` in place of python: what they refuse, and the command that they become."""

import os
import subprocess
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run_script(name, *arguments):
    command, environment = ["bash", str(TOOLS / f"{name}.sh"), *map(str, arguments)], {"PATH": os.environ["PATH"]}
    return subprocess.run(command, env={**environment, "RUN": "echo"}, capture_output=True, text=True)
