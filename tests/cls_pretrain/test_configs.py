"""Every recipe loads, and the commands in its docstring use keys that it has."""

import ast
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from last_vit.lazy_config import apply_overrides

FOLDER = Path(__file__).resolve().parents[2] / "cls_pretrain"
CONFIGS = [FOLDER / "conf.py", *sorted((FOLDER / "configs").glob("*.py"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_documents_itself_and_its_pooling_is_an_override(path):
    cfg = LazyConfig.load(str(path))
    assert {"model", "optimizer", "lr_multiplier", "dataloader", "evaluation", "train"} <= set(cfg)
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config-file {path.relative_to(FOLDER.parent)}" in docstring
    command = "\n".join(line.partition(" #")[0] for line in docstring.splitlines() if line.startswith("    "))
    overrides = re.findall(r"(?<!\S)((?:model|train|dataloader|optimizer)\.[\w.]+=\S+)", command)
    apply_overrides(cfg, [re.sub(r"=\$\w+$", "=7", override) for override in overrides])
    if "init" in cfg.model:
        assert cfg.dataloader.train.dataset.transform.init == cfg.model.init
        cfg.model.init = re.sub("@.*", "@random", cfg.model.init)
    elif cfg.model.pool != "host":
        cfg.model.model.num_layers = 1
    if cfg.model.pool != "host":
        cfg.model.pop("window_layers", None)
        apply_overrides(cfg, ["model.pool=last", "model.top_k=7"])
    with torch.device("meta"):
        pooling = instantiate(cfg.model).pooling
    assert pooling == {"pool": "host"} or pooling["top_k"] == 7


@pytest.mark.parametrize(
    ("name", "base", "num_windowed", "num_registers", "grid"),
    [
        ("tiny_imagenet_patch16", "tiny_imagenet", 0, 0, 4),
        ("tiny_imagenet_window_all", "tiny_imagenet", 4, 0, 8),
        ("tiny_imagenet_registers", "tiny_imagenet", 0, 4, 8),
        ("vits16_window_1_5_9_11_in1k", "vits16_in1k", 4, 0, 14),
        ("vits16_window_all_in1k", "vits16_in1k", 12, 0, 14),
        ("vitb16_registers_in1k", "vitb16_in1k", 0, 4, 14),
        ("vitb_large_patch_in1k", "vitb16_in1k", 0, 0, 7),
    ],
)
def test_ablations_change_one_thing(name, base, num_windowed, num_registers, grid):
    """The model is what the recipe's name says, and everything but it and the folder is its base's."""
    cfg, base_cfg = (LazyConfig.load(str(FOLDER / "configs" / f"{stem}.py")) for stem in (name, base))
    with torch.device("meta"):
        net = instantiate(cfg.model)
    assert net.pooling["pool"] == "cls"
    windows = [int(hasattr(block.self_attention, "window_mask")) for block in net.model.encoder.layers]
    assert (sum(windows), net.model.image_size // net.model.patch_size) == (num_windowed, grid)
    assert (net.model.register_tokens.shape[1] if num_registers else 0) == num_registers
    for key in ("optimizer", "lr_multiplier", "dataloader", "evaluation", "train"):
        for each in (cfg, base_cfg):
            each[key].pop("output_dir", None)
        assert cfg[key] == base_cfg[key]


def test_release_recipe():
    """The released numbers: 512 images per GPU, AdamW 1e-3, weight decay 0.3, betas 0.9 / 0.95, 1% warm-up."""
    cfg = LazyConfig.load(str(CONFIGS[0]))
    assert (cfg.dataloader.train.batch_size, cfg.train.max_iter, cfg.train.eval_period) == (512, 31278, 5000)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (1e-3, 0.3, [0.9, 0.95])
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.0) == pytest.approx(0.1)
    assert schedule(0.01) == pytest.approx(1.0, abs=1e-3)
    assert schedule(1.0) == pytest.approx(0.001, abs=1e-3)
    switches = ("bf16", "compile", "fused_pool", "clip_grad_norm", "accumulation_steps")
    assert [cfg.train[name] for name in switches] == [False, False, False, 0.0, 1]
    assert not cfg.optimizer.fused
