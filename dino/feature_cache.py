"""Features on disk, written once and read back only for the same weights, images and preprocessing.

<folder>/train.pth, <folder>/val.pth: {"of": what they are features of, "features": float32 [N, D]}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from last_vit.checkpoint import read_checkpoint, save_checkpoint
from last_vit.data.loaders import process_share
from last_vit.runtime import rank


def dump_features(folder: Path, split: str, of: Mapping[str, Any], features: Tensor) -> Path:
    """Write the features of one split, atomically; in the main process only.

    Args:
        folder: Made when missing.
        split: "train" or "val".
        of: What decides the features, plain values.
        features: [N, D] of all processes.

    Returns:
        The written file.

    Raises:
        OSError: It cannot be written; an older file is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.pth"
    save_checkpoint(path, {"of": dict(of), "features": features})
    return path


def load_features(folder: Path, split: str, of: Mapping[str, Any], total: int) -> Tensor:
    """Read this process's share of the features of one split; each process reads the whole file.

    Args:
        folder: As in `dump_features`.
        split: As in `dump_features`.
        of: What is wanted.
        total: N.

    Returns:
        float32 [share, D] as `extract_features` gives it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged file, or features of something else; the message says in what they differ.
    """
    path = folder / f"{split}.pth"
    content = read_checkpoint(path)
    if not isinstance(content.get("of"), Mapping) or not isinstance(content.get("features"), Tensor):
        raise ValueError(f"{path} is no cache of --dump_features: it holds {', '.join(map(str, content))}")
    stored, features = content["of"], content["features"]
    different = [f"{name} {stored.get(name)} there, {of[name]} here" for name in of if stored.get(name) != of[name]]
    if different or len(features) != total:
        raise ValueError(
            f"{path} holds features of something else: {'; '.join(different) or f'{len(features)} rows'}. Make them "
            "anew: --dump_features in place of --load_features"
        )
    share = process_share(total, rank())
    return features[share.start : share.stop].clone() if len(share) < total else features
