"""How runs end early and share folders: Ctrl-C and SIGTERM that lose nothing, and one run per output folder.

A training notes the signal and stops at its next step border, see `last_vit.train_lib`; everything else stops at once.
Exit statuses are the shell's, 128 + signal, which Slurm's accounting shows too: 130 for Ctrl-C, 143 for SIGTERM.
"""

import atexit
import json
import multiprocessing
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 120  # seconds for the step border of a spawned process; its launcher's SIGTERM may mean that another failed
_noted = {"signal": 0, "at": 0.0}
_is_training = False
_held: list[Path] = []


class Stopped(KeyboardInterrupt):
    """A run ended because it was asked to; the message is for its user, and empty where another process says it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


@contextmanager
def _handling(handler: Callable[[int, Any], None], signals: tuple[int, ...] = _SIGNALS) -> Iterator[None]:
    """The handler for some signals while the block lasts; Python leaves signals to the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals} if is_main else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def ending_at_sigterm() -> Iterator[None]:
    """While it lasts, SIGTERM raises `Stopped` as Ctrl-C raises KeyboardInterrupt; then folders are free again."""
    process = os.getpid()
    _noted["signal"] = 0

    def end(number: int, _: Any) -> None:
        if _noted["signal"]:  # it is ending already, and a launcher ends all processes with the first
            return
        if os.getpid() != process:  # a forked one, which is to end as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped("stopped by SIGTERM", number)

    try:
        with _handling(end, (signal.SIGTERM,)):
            yield
    finally:
        release_folders()


@contextmanager
def stopping_at_step_borders() -> Iterator[None]:
    """While it lasts, Ctrl-C and SIGTERM are only noted, for `stop_signal`; a second Ctrl-C ends the process at once.

    Processes that are forked meanwhile, which load data, do not see the signals: a terminal and Slurm send them to all.
    """
    global _is_training
    _noted["signal"], _is_training = 0, True
    try:
        with _handling(_note):
            yield
    finally:
        _is_training = False
        atexit.unregister(_kill_loaders)
        atexit.register(_kill_loaders)


def stop_signal() -> int:
    """The signal by which this process was asked to stop during the training; 0 if it was not."""
    return _noted["signal"]


def _note(number: int, _: Any) -> None:
    if not _noted["signal"]:
        _noted.update(signal=number, at=time.monotonic())
        if number == signal.SIGTERM and multiprocessing.parent_process() is not None:
            signal.alarm(_PATIENCE)
    elif number == signal.SIGINT and time.monotonic() - _noted["at"] > 1:  # before, a launcher passes on the first one
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _shield_forked() -> None:
    if _is_training:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _kill_loaders() -> None:
    """End what `_shield_forked` protects, before Python's own SIGTERM would wait for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


os.register_at_fork(after_in_child=_shield_forked)


@contextmanager
def passing_signals_on() -> Iterator[None]:
    """While it lasts, Ctrl-C and SIGTERM go to the processes that this one has started and waits for."""

    def pass_on(number: int, _: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    with _handling(pass_on):
        yield


def resume_command(*flags: str) -> str:
    """This process's command with flags behind the script, such as "--resume" or "--resume=latest", for a shell."""
    launcher = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}", "--"]
    script, *words = sys.argv
    for flag in flags:
        name, _, value = flag.partition("=")
        pairs = list(zip(["", *words], words, strict=False))
        words = [word for old, word in pairs if word.partition("=")[0] != name and not (value and old == name)]
    return shlex.join([*launcher, script, *flags, *words])


def hold_folder(folder: str | Path) -> None:
    """Keep other runs out of an output folder until `release_folders`; for the main process of a run.

    ValueError: A run holds it: one of a living process, or of another machine, whose processes nobody sees here.
    """
    path, own = Path(folder) / LOCK_FILE, {"process": os.getpid(), "host": socket.gethostname()}
    own["slurm_job"] = os.environ.get("SLURM_JOB_ID")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _check_stale(path, own)
        path.unlink(missing_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(own, file)
    except FileExistsError:  # another has just taken it
        _check_stale(path, own)
        raise
    _held.append(path)


def _check_stale(path: Path, own: Mapping[str, Any]) -> None:
    """Return where a lock's run is over: its process is dead on this host, or its Slurm job was queued again."""
    holder: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
    process, where = holder.get("process"), holder.get("host")
    if where == own["host"]:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass
    elif own["slurm_job"] is not None and own["slurm_job"] == holder.get("slurm_job"):
        return
    raise ValueError(
        f"{path.parent} belongs to a run that is going on, process {process} on {where} ({path}): wait for it or stop "
        f"it, or choose another output folder; if no such run exists any more, delete {path}"
    )


def release_folders() -> None:
    """Let other runs into the folders that this process holds; a folder that stayed empty is removed."""
    while _held:
        path = _held.pop()
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()
