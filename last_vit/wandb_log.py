"""A run's numbers in Weights & Biases too, where `wandb` is installed; WANDB_MODE=offline keeps them on the disk."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbScalars:
    """Logs to a run of wandb what a storage of scalars got since the last time."""

    def __init__(self, run: Any) -> None:
        self._run, self._last = run, -1

    def log_latest(self, latest: Mapping[str, tuple[float, int]], iteration: int) -> None:
        """`latest` is name -> value and iteration of it, at this iteration."""
        new = {name: value for name, (value, at) in latest.items() if at > self._last}
        self._run.log(new, step=iteration)
        self._last = iteration

    def close(self) -> None:
        """The run is over."""
        self._run.finish()


def open_wandb(folder: str | Path, config: Mapping[str, Any]) -> Any:
    """A run of project "last-vit", in the main process, continued when the training in the folder is.

    Its name is the folder's and some digits, which stand in <folder>/wandb_id, so that no two runs share one; wandb's
    own files go below the folder. ValueError where wandb does not start, such as for want of a login.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError('no wandb to log to: pip install "last-vit[wandb]", or leave wandb off') from error
    folder = Path(folder)
    kept = folder / "wandb_id"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(secrets.token_hex(4))
    number = kept.read_text().strip()
    name = f"{folder.resolve().name}-{number}"
    own = {"project": "last-vit", "id": number, "name": name, "dir": str(folder), "resume": "allow"}
    try:
        return wandb.init(**own, config=dict(config))
    except wandb.errors.Error as error:
        raise ValueError(f"wandb does not start ({error}); WANDB_MODE=offline needs no login and no network") from error
