"""Every recipe loads, and the commands in its docstring use keys that it has."""

import ast
import re
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from last_vit.dense import pooling_of
from last_vit.lazy_overrides import apply_overrides

FOLDER = Path(__file__).resolve().parent.parent / "cls_pretrain"
CONFIGS = [FOLDER / "conf.py", *sorted((FOLDER / "configs").glob("*.py"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_documents_itself(path):
    cfg = LazyConfig.load(str(path))
    assert {"model", "optimizer", "lr_multiplier", "dataloader", "evaluation", "train"} <= set(cfg)
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config-file {path.relative_to(FOLDER.parent)}" in docstring
    command = "\n".join(line.partition(" #")[0] for line in docstring.splitlines() if line.startswith("    "))
    overrides = re.findall(r"(?<!\S)((?:model|train|dataloader|optimizer)\.[\w.]+=\S+)", command)
    apply_overrides(cfg, [override.replace("$top_k", "7") for override in overrides])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_pooling_is_an_override(path):
    cfg = LazyConfig.load(str(path))
    if "num_layers" in cfg.model.model:
        cfg.model.model.num_layers = 1
        apply_overrides(cfg, ["model.pool=last", "model.top_k=7"])
        assert pooling_of(instantiate(cfg.model))["top_k"] == 7
    else:
        assert pooling_of(instantiate(cfg.model)) == {"pool": "host"}


def test_release_recipe():
    """The released numbers: 512 images per GPU, AdamW 1e-3, weight decay 0.3, betas 0.9 / 0.95, 1% warm-up."""
    cfg = LazyConfig.load(str(CONFIGS[0]))
    assert (cfg.dataloader.train.batch_size, cfg.train.max_iter, cfg.train.eval_period) == (512, 31278, 5000)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (1e-3, 0.3, [0.9, 0.95])
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.0) == pytest.approx(0.1)
    assert schedule(0.01) == pytest.approx(1.0, abs=1e-3)
    assert schedule(1.0) == pytest.approx(0.001, abs=1e-3)
    switches = ("bf16", "compile", "clip_grad_norm", "accumulation_steps")
    assert [cfg.train[name] for name in switches] == [False, False, 0.0, 1]
    assert not cfg.optimizer.fused
