"""The command of this process, as a results record tells it: to be run again from the repository's root.

No absolute path is kept, so that a record says nothing about the machine it was made on.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from torch import distributed

ROOT = Path(__file__).resolve().parents[1]
# An absolute path anywhere in a text: at its start or after anything that cannot be part of a path, behind "file://",
# and behind an open_clip architecture, where the "/" before it is a separator. "tcp://host" is none.
_ABSOLUTE = re.compile(r"(\bopen_clip:[^/\s]+/|\bfile://|(?<![\w.~/-]))(/[^/\s'\",\[\](){}][^'\",\[\](){}]*)")


def run_command() -> str:
    """The launcher, the script and its arguments, quoted for a shell.

    The launcher is torchrun only where torchrun started this process: detectron2's own launcher is an argument
    (`--num-gpus`) of the script. The script is named from the repository's root where it lies in it. Arguments are as
    typed, but for absolute paths: see `hide_machine_paths`.

    Returns:
        Such as "torchrun --nproc-per-node=2 visualization/evaluate_patch_hit.py --imagenet-root .../imagenet".
    """
    launcher = ["python"]
    if distributed.is_torchelastic_launched():
        launcher = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]
    script, found = sys.argv[0], Path(sys.argv[0]).resolve()
    if found.is_file() and found.is_relative_to(ROOT):
        script = found.relative_to(ROOT).as_posix()
    return shlex.join([*launcher, *(hide_machine_paths(word) for word in (script, *sys.argv[1:]))])


def hide_machine_paths(text: str) -> str:
    """A text without the absolute paths in it, also as `key=/path`, in lists, and after `open_clip:<arch>/`.

    A path under the current folder becomes relative to it; of any other the last part stays, behind ".../".

    Args:
        text: Any.

    Returns:
        The text, unchanged where it has no absolute path.

    Example:
        >>> hide_machine_paths("dataloader.train.dataset.root=/mnt/disk3/imagenet")
        'dataloader.train.dataset.root=.../imagenet'
    """
    return _ABSOLUTE.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    before, path = match[1], Path(match[2])
    is_near = path.is_relative_to(Path.cwd())
    return before + (path.relative_to(Path.cwd()).as_posix() if is_near else f".../{path.name}")
