"""What every command needs around its work: seeds, device, process group, and logging from the main process alone.

Distributed runs are started by torchrun (or any launcher that sets its variables); without one, world size is 1 and
every function here still works.
"""

import logging
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

# What torch makes of an exception in a loading process: its traceback, which ends in "<class>: <message>".
_WORKER_ERROR = re.compile(r"Caught (\w+) in DataLoader .*\n(?:[\w.]+\.)?\1: (.*)", re.DOTALL)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices) with the same number in [0, 2**32)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """While it lasts, models that are built on the CPU get weights from this seed; no generator keeps a trace of it.

    The GPUs' generators are left alone: `torch.manual_seed` would seed them, and putting them all back asks every GPU
    of the machine from every process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def select_device(name: str = "auto") -> torch.device:
    """The device of a name; ValueError for an unknown one, or a GPU that this machine does not have.

    "auto" (CUDA where there is a GPU, else CPU), "cpu", "cuda" (under torchrun, this process's GPU) or "cuda:<index>".
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", name):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<index>, got {name!r}")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    num_gpus = torch.cuda.device_count()
    if device.index is None and num_gpus > 0:
        device = torch.device("cuda", local_rank() % num_gpus)
    if device.index is None or device.index >= num_gpus:
        raise ValueError(f"device {name!r} asked for, but torch sees {num_gpus} GPU(s); use --device cpu")
    return device


def describe_device(device: torch.device | str) -> str:
    """A device in words for a results record, such as "NVIDIA H200" or "cpu, 2 threads"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


@contextmanager
def process_group(device_name: str = "auto", dist_url: str | None = None) -> Iterator[torch.device]:
    """Select the device and, under torchrun, join the process group for the duration of the block.

    GPUs talk over NCCL, CPUs over gloo. `dist_url` is where processes meet (env://, tcp:// or file://) that another
    launcher started with RANK and WORLD_SIZE set; None joins those of torchrun only.
    """
    device = select_device(device_name)
    place = {}
    if dist_url is not None and not dist.is_torchelastic_launched() and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"]), "init_method": dist_url}
    if not (place or dist.is_torchelastic_launched()) or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **place)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    """This process's rank on its own machine, as torchrun numbers it; 0 without torchrun."""
    return dist.get_node_local_rank(fallback_rank=0)


def is_main_process() -> bool:
    """True in the one process that prints and writes."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over all processes, as a new tensor on the same device; a copy without a process group."""
    if world_size() == 1:
        return tensor.clone()
    total = tensor.detach().to(_group_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Every process's tensor, in the order of their ranks, on this one's device; shapes and dtypes must be the same."""
    if world_size() == 1:
        return [tensor]
    own = tensor.detach().to(_group_device()).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return [part.to(tensor.device) for part in parts]


def _group_device() -> torch.device:
    """Where the process group moves memory; a process that saw no batch still holds its counters on the CPU."""
    on_gpu = dist.get_backend() == "nccl"  # which moves GPU memory only
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def progress(batches: Iterable, title: str, unit: str = "batch") -> tqdm:
    """The batches behind a progress bar, which the main process shows while it runs on a terminal."""
    return tqdm(batches, desc=title, unit=unit, disable=None if is_main_process() else True, leave=False)


class _ToStderr(logging.StreamHandler):
    """Writes to what sys.stderr is when a line comes, which is not always what it was at first."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str = "last_vit") -> logging.Logger:
    """Logger to stderr; processes other than the main one log warnings and worse only."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    return logger


def error_text(error: BaseException) -> str:
    """An exception's message; of one that a DataLoader's worker raised, the original message without the traceback."""
    found = _WORKER_ERROR.fullmatch(str(error))
    return found[2].strip() if found else str(error)
