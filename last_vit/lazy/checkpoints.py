"""Checkpoints of a LazyConfig run: written atomically, read safely, resumed with the config's own options.

    {"model": {key: tensor}, "trainer": {"iteration", "optimizer", ...}, "iteration": int, ...}

and what a track records beside these of what its weights were trained with. Imports detectron2 only when one is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import check_finite, save_checkpoint

if TYPE_CHECKING:
    from detectron2.engine import SimpleTrainer

_POINTER = "last_checkpoint"
logger = logging.getLogger("detectron2")  # also writes the run's log.txt


class RunCheckpoints:
    """The checkpoints in a run's folder, with what detectron2's `PeriodicCheckpointer` asks of one.

    Not fvcore's `Checkpointer`: of that, nothing would be left but the file names.

    Args:
        model: The bare network, not its DDP wrapper.
        folder: Of the run.
        trainer: Whose state (iteration, optimizer) is saved and resumed.
        about: What every file says beside weights and state.
        load: Loads a file of this layout into the model and returns its content, or raises ValueError where the file
            was trained with something else than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | Path,
        trainer: SimpleTrainer,
        about: Mapping[str, Any],
        load: Callable[[Path], Mapping[str, Any]],
    ) -> None:
        from detectron2.utils.file_io import PathManager

        self.path_manager = PathManager  # removes the files that are too many
        self._model, self._trainer, self._about, self._load = model, trainer, dict(about), load
        self._folder = Path(folder)

    def save(self, name: str, **state: Any) -> None:
        """Write `<name>.pth`; weights that are not finite are refused, so that a good file is never replaced by them.

        Raises:
            FloatingPointError: A weight is NaN or infinite.
            OSError: The file cannot be written; earlier checkpoints are intact.
        """
        weights = self._model.state_dict()
        check_finite(weights)
        content = {"model": weights, "trainer": self._trainer.state_dict(), **state, **self._about}
        save_checkpoint(self._folder / f"{name}.pth", content)
        with atomic_file(self._folder / _POINTER) as file:
            file.write(f"{name}.pth".encode())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint, under the name that detectron2 calls it by; "" where there is none."""
        pointer = self._folder / _POINTER
        return str(self._folder / pointer.read_text(encoding="utf-8").strip()) if pointer.exists() else ""

    def resume(self) -> int:
        """Load weights, optimizer state and iteration of the last checkpoint.

        The optimizer's options (lr, weight decay, ...) are the config's, so that a run can go on with others.

        Returns:
            The iteration to start with; 0 when the folder holds no checkpoint.

        Raises:
            ValueError: From `load`.
        """
        path, trainer = self.get_checkpoint_file(), self._trainer
        if not path:
            logger.info("No checkpoint in %s: starting at iteration 0", self._folder)
            return 0
        content = self._load(Path(path))
        groups = trainer.optimizer.param_groups
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        trainer.load_state_dict(content["trainer"])
        for group, own in zip(trainer.optimizer.param_groups, options, strict=True):
            group.update(own, initial_lr=own["lr"])  # the schedule sets lr from initial_lr and the iteration
        logger.info("Resuming from %s after iteration %d", path, trainer.iter)
        return trainer.iter + 1
