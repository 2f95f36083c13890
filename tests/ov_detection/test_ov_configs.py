"""Every detector recipe loads, documents its own command, and builds F-ViT's published sizes."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from class_embeddings import ClassEmbeddings
from detectron2.config import LazyConfig, instantiate
from ov_training import build_detector

from last_vit.lazy_config import apply_overrides

FOLDER = Path(__file__).resolve().parents[2] / "ov_detection" / "configs"
SETS = {"ov_coco": 65, "ov_lvis": 1203}
CONFIGS = sorted(path for name in SETS for path in (FOLDER / name).glob("*.py"))
FULL = [path for path in CONFIGS if path.stem.startswith("fvit_")]
PARTS = {"model", "vocabulary", "optimizer", "lr_multiplier", "dataloader", "evaluation", "train"}
# tower -> width, text width, patch
TOWERS = {
    "EVA02-B-16": (768, 512, 16),
    "EVA02-L-14-336": (1024, 768, 14),
    "ViT-B-16-quickgelu": (768, 512, 16),
    "ViT-L-14-336-quickgelu": (1024, 768, 14),
}


def name_of(path):
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_loads_and_documents_itself(path):
    cfg = LazyConfig.load(str(path))
    assert set(cfg) >= PARTS
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config-file {path.relative_to(FOLDER.parent.parent)}" in docstring
    command = docstring[docstring.index("    python ov_detection") :]
    apply_overrides(cfg, re.findall(r"(?<!\S)((?:model|train|dataloader)\.[\w.]+=\S+)", command))
    assert cfg.dataloader.test.dataset.size == cfg.dataloader.train.dataset.size == cfg.model.square_size


def test_there_is_one_per_tower_and_kind():
    kinds = {f"fvit_{tower}_{kind}" for tower in ("vitb16", "vitl14") for kind in ("baseline", "last")}
    kinds |= {name.replace("fvit_", "fvit_openai_") for name in kinds}
    assert {name_of(path) for path in FULL} == {f"{data}-{kind}" for data in SETS for kind in kinds}
    outputs = [LazyConfig.load(str(path)).train.output_dir for path in FULL]
    assert len(set(outputs)) == len(outputs) == 16


@pytest.mark.parametrize("path", FULL, ids=name_of)
def test_name_says_what_the_recipe_is(path):
    cfg = LazyConfig.load(str(path))
    data, is_last, is_large = path.parent.name, path.stem.endswith("last"), "vitl14" in path.stem
    assert cfg.model.clip.dense == ("plain" if is_last else "last-block-value")
    assert ("openai" in path.stem) == cfg.model.clip.arch.endswith("quickgelu")
    assert Path(cfg.model.clip.checkpoint).suffix == ".pt"
    assert cfg.evaluation.table == data
    assert is_large == (TOWERS[cfg.model.clip.arch][2] == 14)
    assert cfg.model.square_size == (896 if is_large else {"ov_coco": 640, "ov_lvis": 1024}[data])
    assert cfg.model.roi_heads.beta == {"ov_coco": 0.8, "ov_lvis": 0.4 if is_large else 0.6}[data]


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("stem", ["fvit_vitb16_last", "fvit_vitl14_last"])
def test_full_size_models_but_for_the_tower(data, stem):
    cfg = LazyConfig.load(str(FOLDER / data / f"{stem}.py"))
    num_classes, (width, embed_dim, patch) = SETS[data], TOWERS[cfg.model.clip.arch]
    cfg.model.clip = {"_target_": SimpleNamespace, "width": width, "embed_dim": embed_dim, "patch_size": patch}
    rows = torch.rand(num_classes + 1, embed_dim, generator=torch.Generator().manual_seed(0))
    words = ClassEmbeddings(tuple(f"c{i}" for i in range(num_classes)), rows[:-1], rows[-1], "x", "x")
    base = torch.arange(num_classes) % 4 > 0
    model = build_detector(cfg, words, base)
    predictor = model.roi_heads.box_predictor
    assert predictor.fusion == {"alpha": 0.1, "beta": cfg.model.roi_heads.beta, "fusion": "f-vit"}
    assert predictor.vlm_temperature == {"ov_coco": 75, "ov_lvis": 50}[data]
    limits = (predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image)
    assert limits == {"ov_coco": (0.01, 0.4, 100), "ov_lvis": (1e-4, 0.5, 300)}[data]
    assert model.roi_heads.mask_on == (data == "ov_lvis")
    assert predictor.classifier.weights == (1.0, 0.0, {"ov_coco": 0.6, "ov_lvis": 0.9}[data])
    assert predictor.classifier.temperature == 50
    assert model.roi_heads.box_head.fc1.weight.shape == (embed_dim, 12544)
    assert model.backbone.strides["p2"] == patch / 4


def test_schedules_are_f_vit_s():
    """FACTS of its configs: AdamW 1e-4, weight decay 0.1, clip 1.0; 3 epochs, or 48 with lr / 10 at 32 and 44."""
    coco, lvis = (LazyConfig.load(str(FOLDER / name / "fvit_vitb16_last.py")) for name in SETS)
    for cfg in (coco, lvis):
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (1e-4, 0.1, [0.9, 0.999])
        assert (cfg.train.clip_grad_norm, cfg.train.lr_batch_size, cfg.train.seed) == (1.0, 64, 0)
        assert cfg.dataloader.train.batch_size == 8
        schedule = instantiate(cfg.lr_multiplier)
        assert schedule(0.0) == pytest.approx(0.001)
        assert schedule(250 / cfg.train.max_iter) == pytest.approx(1.0)
    assert coco.train.max_iter == 5052
    assert instantiate(coco.lr_multiplier)(0.999) == 1.0
    schedule = instantiate(lvis.lr_multiplier)
    values = [schedule(epoch / 48) for epoch in (31.9, 32.1, 43.9, 44.1)]
    assert values == pytest.approx([1.0, 0.1, 0.1, 0.01])
