"""Accuracy and Point-in-Box over a training run: from the log that it left, or which checkpoints to measure it with.

Reads `metrics.json` as detectron2's JSONWriter writes it, which is what cls_pretrain/ logs to: one JSON object a line,
of which those with "acc1" are evaluations. Draws nothing and loads no model.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingCurve:
    """The evaluations of one run, in order.

    Attributes:
        name: What the picture calls it; several runs may share one, such as the seeds of one recipe.
        source: Its folder.
        points: Step -> metrics in percent ("acc1", "point_in_box", "point_in_box_random", "point_in_box_center"; those
            that were measured). A step is the iteration as the log counts it, from 0, or a checkpoint's number.
        left_out: What was not read, in words; "" for nothing.
    """

    name: str
    source: Path
    points: dict[int, dict[str, float]]
    left_out: str = ""


def read_training_curve(text: str) -> TrainingCurve:
    """Read the log of one run.

    A resumed run logs some iterations twice: the last line of an iteration counts. A run that was killed while writing
    leaves a part of a line, at the end or, once resumed, in front of the next one; such lines are counted and left out.

    Args:
        text: `[NAME=]FOLDER`, where the folder holds metrics.json; without a name the run is called after its folder.

    Raises:
        FileNotFoundError: No such folder, or no log in it.
        ValueError: No evaluation in the log, or none with Point-in-Box; the message says which options make them.
    """
    name, _, folder_text = ("", "", text) if Path(text).is_dir() else text.rpartition("=")
    folder = Path(folder_text)
    log = folder / "metrics.json"
    if not log.is_file():
        raise FileNotFoundError(
            f"no {log}: a run is given as [NAME=]FOLDER, the train.output_dir of a cls_pretrain run"
        )
    points, num_broken = {}, 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            num_broken += 1
            continue
        if "acc1" in row:
            points[row["iteration"]] = {key: row[key] for key in row if key == "acc1" or key.startswith("point_in_box")}
    if not points:
        raise ValueError(
            f"{log} holds no evaluation: train with train.eval_period=<iterations>, and with "
            f"dataloader.test.dataset.boxes=True for Point-in-Box; or measure the run's checkpoints with --model"
        )
    if not any("point_in_box" in metrics for metrics in points.values()):
        raise ValueError(
            f"the evaluations in {log} are without Point-in-Box: train with dataloader.test.dataset.boxes=True, or "
            f"measure the run's checkpoints with --model"
        )
    left_out = f"{num_broken} unreadable line{'s' * (num_broken > 1)} of the log" if num_broken else ""
    return TrainingCurve(name or folder.resolve().name, folder, dict(sorted(points.items())), left_out)


def numbered_checkpoints(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """The checkpoints of a run that tell in their name when they were written.

    Args:
        folder: With files such as model_0001563.pth (cls_pretrain: iterations) or checkpoint0020.pth (DINO: epochs).

    Returns:
        Number -> file, ascending; and the names of the other checkpoints, such as model_final.pth.

    Raises:
        FileNotFoundError: No such folder, or no such checkpoint in it.
        ValueError: Two files of one number.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: name the folder that holds a run's checkpoints, SPEC@FOLDER")
    found: dict[int, Path] = {}
    others = []
    for path in sorted(folder.glob("*.pth")):
        match = re.search(r"(\d+)\.pth$", path.name)
        if match is None:
            others.append(path.name)
        elif int(match[1]) in found:
            raise ValueError(f"two checkpoints of the same number: {found[int(match[1])]} and {path}")
        else:
            found[int(match[1])] = path
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint whose name ends in a number, such as model_0001563.pth; it holds "
            f"{', '.join(others) or 'no .pth file'}"
        )
    return dict(sorted(found.items())), others
