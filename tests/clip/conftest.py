"""What the tests of CLIP's commands share."""

import open_clip
import pytest
import torch
from clip_train_parts import write_config


@pytest.fixture
def training_folder(monkeypatch, tmp_path):
    """A folder of its own with the tiny model, one process, no GPU, and open_clip's registry as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    write_config()
    return tmp_path
