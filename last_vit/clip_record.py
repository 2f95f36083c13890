"""What is known about a CLIP checkpoint beside its weights: the record that training leaves in its folder.

clip/train_clip.py writes `last_vit.json` beside its checkpoints, for all of them:

    {"pool": "last", "top_k": 0.5, "variant": "release", "model": "ViT-B-16-quickgelu", "force_quick_gelu": false}
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from last_vit.names import POOLS
from last_vit.weights import WEIGHTS

RECORD_FILE = "last_vit.json"


@dataclass(frozen=True)
class ClipRecord:
    """A read `last_vit.json`.

    Attributes:
        path: The file.
        model: open_clip architecture of the training.
        pool: One of `POOLS`, or "host" for the tower's own read-out.
        top_k, variant: Of LaSt; None for another pool.
        force_quick_gelu: Whether the architecture was trained with QuickGELU although its configuration says GELU.
    """

    path: Path
    model: str
    pool: str
    top_k: int | float | None
    variant: str | None
    force_quick_gelu: bool


def read_clip_record(checkpoint: str | Path) -> ClipRecord | None:
    """The record in a checkpoint's folder; None where there is none.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    path = Path(checkpoint).parent / RECORD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = ClipRecord(
            path=path,
            model=content["model"],
            pool=content["pool"] or "host",
            top_k=content.get("top_k"),
            variant=content.get("variant"),
            force_quick_gelu=content.get("force_quick_gelu", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a CLIP training ({error!r}); restore or remove it") from error
    needs_top_k = record.pool == "last" and (
        isinstance(record.top_k, bool) or not isinstance(record.top_k, int | float)
    )
    if record.pool not in ("host", *POOLS) or needs_top_k or not isinstance(record.model, str):
        raise ValueError(
            f"{path} is no record of a CLIP training: it needs a model name, a pool of host, {', '.join(POOLS)}, "
            f"and a top_k for last; it holds {content}. Restore or remove it"
        )
    return record


def recorded_pooling(checkpoint: str | Path, record: ClipRecord | None) -> tuple[dict[str, Any] | None, str]:
    """What a checkpoint's weights were trained to be pooled with, and who says so, for `attach_trained_pooling`.

    Args:
        checkpoint: Of LaSt-ViT's release, known by the file's name (see weights.py), or any other.
        record: As `read_clip_record` gives it; goes before the name.

    Returns:
        The pooling in the form of `pooling_of`, None where nothing is known; and the source in words.
    """
    if record is not None:
        pooling = {"pool": record.pool, "top_k": record.top_k, "variant": record.variant, "sigma": None}
        return pooling, f"recorded in {record.path.name} beside the checkpoint"
    for released in WEIGHTS.values():
        is_clip = released.architecture is not None and released.architecture.startswith("open_clip:")
        if is_clip and released.file == Path(checkpoint).name:
            pooling, source = dict(released.pooling), f"LaSt-ViT's release, known by the file's name {released.file}"
            if pooling["top_k"] is None:
                pooling["top_k"] = 1
                source += "; its K is not published, 1 is that of the release's code"
            return pooling, source
    return None, ""
