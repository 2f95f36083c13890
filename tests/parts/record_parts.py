"""A results record for tests of records and of tables, and those that a command has written."""

import json
from pathlib import Path

from last_vit.results import write_result


def write(directory: Path, name: str = "run", **changes) -> Path:
    arguments = {
        "metrics": {"point_in_box": 43.21, "point_in_box_random": 20.0, "point_in_box_center": 50.0},
        "n_images": 1200,
        "dataset": "synthetic",
        "config": {"top_k": 1},
        "checkpoint_sha256": "0" * 16,
        "seconds": 2.0,
        "device": "cpu",
        "table": "point_in_box",
        "row": "ViT-Ti/8, LaSt K=1",
        **changes,
    }
    return write_result(name, arguments.pop("metrics"), directory=directory, **arguments)


def read_records(*folders: str) -> list[dict]:
    """All records below folders of the current one, by default output/ and results/, by the names of their files."""
    paths = [path for folder in folders or ("output", "results") for path in Path(folder).rglob("*.json")]
    return [json.loads(path.read_text()) for path in sorted(paths, key=lambda path: path.name)]
