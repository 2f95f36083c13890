"""Checkpoints of a run in the release's layout, written atomically, read safely and loaded strictly.

    {"model": {"model.<host key>": tensor}, "trainer": {"iteration", "optimizer", ...}, "iteration": int,
     "pooling": {"pool", "top_k", "variant", "sigma"}}

"pooling" is our addition: it says what the weights were trained with, so that an evaluation can follow or refuse.
"""

import logging
from pathlib import Path
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

from last_vit.checkpoint import check_finite, load_checkpoint, load_strict, read_checkpoint, save_checkpoint
from last_vit.classification_net import ClassificationNet

logger = logging.getLogger("detectron2")


class StrictCheckpointer(Checkpointer):
    """fvcore's Checkpointer (so that detectron2's hooks drive it) over last_vit.checkpoint.

    Args:
        model: The bare network, not its DDP wrapper.
        save_dir: Folder of the run.
        trainer: Whose state (iteration, optimizer) is saved and resumed.
    """

    def __init__(self, model: ClassificationNet, save_dir: Path, trainer: TrainerBase) -> None:
        super().__init__(model, str(save_dir), save_to_disk=comm.is_main_process(), trainer=trainer)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<name>.pth`; weights that are not finite are refused, so that a good file is never replaced by them.

        Raises:
            FloatingPointError: A weight is NaN or infinite.
            OSError: The file cannot be written; earlier checkpoints are intact.
        """
        if not self.save_to_disk:
            return
        weights = self.model.state_dict()
        check_finite(weights)
        state = {name: item.state_dict() for name, item in self.checkpointables.items()}
        save_checkpoint(
            Path(self.save_dir) / f"{name}.pth", {"model": weights, **state, **kwargs, "pooling": self.model.pooling}
        )
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point `last_checkpoint` at a file by renaming, so that a kill leaves the old pointer or the new one."""
        pointer = Path(self.save_dir) / "last_checkpoint"
        temporary = pointer.with_suffix(".tmp")
        temporary.write_text(last_filename_basename, encoding="utf-8")
        temporary.replace(pointer)

    def resume(self, trainer: TrainerBase) -> int:
        """Load weights, optimizer state and iteration from the folder's last checkpoint.

        The optimizer's options (lr, weight decay, ...) are the config's, so that a run can go on with others.

        Returns:
            The iteration to start with; 0 when the folder holds no checkpoint.

        Raises:
            ValueError: The checkpoint does not fit the config's model or was trained with another pooling.
        """
        if not self.has_checkpoint():
            logger.info("No checkpoint in %s: starting at iteration 0", self.save_dir)
            return 0
        path = self.get_checkpoint_file()
        checkpoint = read_checkpoint(path)
        if checkpoint.get("pooling") != self.model.pooling:
            raise ValueError(
                f"{path} was trained with {checkpoint.get('pooling')}, the config says {self.model.pooling}; resume "
                f"with the run's own options, or start a new one from it with train.init_checkpoint"
            )
        load_strict(self.model, checkpoint["model"])
        groups = trainer.optimizer.param_groups
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        trainer.load_state_dict(checkpoint["trainer"])
        for group, own in zip(trainer.optimizer.param_groups, options, strict=True):
            group.update(own, initial_lr=own["lr"])  # the schedule sets lr from initial_lr and the iteration
        logger.info("Resuming from %s after iteration %d", path, trainer.iter)
        return trainer.iter + 1

    def load_weights(self, path: str) -> None:
        """Start from the weights of any checkpoint that `last_vit.checkpoint` reads."""
        loaded = load_checkpoint(self.model, path)
        logger.info("Starting from %s (layout %s, sha256 %s)", path, loaded["layout"], loaded["sha256"])
