"""Modules of the track folders for benches, which stand on no path that Python searches. Imported by benches only."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_track(folder: str, *names: str) -> list[ModuleType]:
    """Modules or packages of a script folder under their own bare names; each must follow those that it imports.

    Args:
        folder: "dino", "ov_detection" and so on.
        *names: File names without ".py", or folders with an `__init__.py`.

    Returns:
        The modules, in the same order; what is imported already stays as it is.
    """
    for name in names:
        if name not in sys.modules:
            package = ROOT / folder / name / "__init__.py"
            path = package if package.exists() else ROOT / folder / f"{name}.py"
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return [sys.modules[name] for name in names]
