"""Runs of a track's lazy_train.py in this process, on the CPU and one thread, as bit-identity is promised there."""

import json
import logging
import runpy
from pathlib import Path

import torch
from detectron2.utils.logger import _cached_log_stream, setup_logger

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


class LazyTrain:
    """lazy_train.py of a track: `run(*words)` is its exit status."""

    def __init__(self, track):
        self.script = REPO / track / "lazy_train.py"
        self._main = runpy.run_path(str(self.script))["main"]

    def run(self, *words, config):
        threads, cuda = torch.get_num_threads(), (torch.cuda.is_available, torch.cuda.device_count)
        torch.set_num_threads(1)
        torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0
        try:
            self._main(["--config-file", str(config), *map(str, words)])
        except SystemExit as stop:
            return stop.code
        finally:
            torch.set_num_threads(threads)
            torch.cuda.is_available, torch.cuda.device_count = cuda
            setup_logger.cache_clear()
            _cached_log_stream.cache_clear()  # of another test's folder of the same name
            for name in ("detectron2", "fvcore"):
                logger = logging.getLogger(name)
                for handler in list(logger.handlers):
                    logger.removeHandler(handler)
                    handler.close()
        return 0


def losses(folder):
    """iteration -> total loss; the last line of an iteration wins."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


def record(path):
    return json.loads(Path(path).read_text())
