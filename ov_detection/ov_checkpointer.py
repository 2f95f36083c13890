"""Checkpoints of a detector: what was trained, written atomically, read safely, loaded strictly.

    {"model": {key: tensor}, "trainer": {"iteration", "optimizer", ...}, "iteration": int,
     "detector": {"clip": {"arch", "weights", "dense", "blocks"}, "base_names": [...]}}

"detector" says which frozen CLIP the weights belong to, which they do not hold, and which classes had boxes in
training. Files without it (converted ones) are taken as they are.
"""

from pathlib import Path
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from fvit.fvit_model import FViT

from last_vit.checkpoint import check_finite, load_strict, read_checkpoint, save_checkpoint
from last_vit.runtime import get_logger


def load_detector(model: FViT, path: str | Path) -> dict[str, Any]:
    """Load the weights of a checkpoint into a detector.

    Args:
        model: Whose frozen CLIP must be the one that the weights were trained on.
        path: Of this file's layout, or of tools/convert_fvit_checkpoint.py's.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable, another architecture, or another CLIP; the message names the file.
    """
    content = read_checkpoint(path)
    weights = content.get("model")
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no detector: expected a checkpoint of lazy_train.py, or a converted one")
    trained_on, own = content.get("detector", {}).get("clip"), model.backbone.clip.source
    if trained_on is not None and trained_on != own:
        differing = [name for name in own if trained_on.get(name) != own[name]]
        words = "; ".join(f"{name} {trained_on.get(name)!r}, now {own[name]!r}" for name in differing)
        raise ValueError(f"{path} was trained on another frozen CLIP ({words}): set model.clip to its own")
    try:
        load_strict(model, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content


class OvCheckpointer(Checkpointer):
    """fvcore's Checkpointer (so that detectron2's hooks drive it) over last_vit.checkpoint.

    Args:
        model: The bare detector, not its DDP wrapper.
        save_dir: Folder of the run.
        trainer: Whose state (iteration, optimizer) is saved and resumed.
    """

    def __init__(self, model: FViT, save_dir: Path, trainer: TrainerBase) -> None:
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
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        detector = {"clip": self.model.backbone.clip.source, "base_names": sorted(self.model.base_names)}
        save_checkpoint(
            Path(self.save_dir) / f"{name}.pth", {"model": weights, **state, **kwargs, "detector": detector}
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
            ValueError: As in `load_detector`.
        """
        if not self.has_checkpoint():
            get_logger().info("No checkpoint in %s: starting at iteration 0", self.save_dir)
            return 0
        path = self.get_checkpoint_file()
        content = load_detector(self.model, path)
        groups = trainer.optimizer.param_groups
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        trainer.load_state_dict(content["trainer"])
        for group, own in zip(trainer.optimizer.param_groups, options, strict=True):
            group.update(own, initial_lr=own["lr"])  # the schedule sets lr from initial_lr and the iteration
        get_logger().info("Resuming from %s after iteration %d", path, trainer.iter)
        return trainer.iter + 1
