"""Every detector recipe loads, documents its own command, and builds F-ViT's published sizes, without weights.

Models are made on torch's meta device, where tensors have a shape and no content, so that L/14 costs nothing; from the
recipe to the pyramid all code is the project's own.
"""

import ast
import logging
import re
from contextlib import nullcontext
from functools import cache, partial

import pytest
import torch
from class_embeddings import ClassEmbeddings
from detectron2.config import LazyConfig, instantiate
from fvit import frozen_clip
from fvit.frozen_clip import FrozenClip
from lazy_parts import REPO
from ov_training import plan_run

from last_vit.clip_models import load_clip
from last_vit.lazy_config import apply_overrides, build_model, read_config

FOLDER = REPO / "ov_detection" / "configs"
SETS = {"ov_coco": 65, "ov_lvis": 1203}
TRANSFER = sorted((FOLDER / "transfer").glob("*.py"))
CONFIGS = sorted(path for name in SETS for path in (FOLDER / name).glob("*.py"))
FULL = [path for path in CONFIGS if path.stem.startswith("fvit_")]
PARTS = {"model", "vocabulary", "optimizer", "lr_multiplier", "dataloader", "evaluation", "train"}
RANDOM = ["model.clip.checkpoint=null", "model.clip.random_seed=0", "model.square_size=0"]  # any shape of image
# patch: FACTS of F-ViT: width, text width, taken blocks, finest stride, millions of numbers in the tower
TOWERS = {16: (768, 512, (3, 5, 7, 11), 4.0, 86.3), 14: (1024, 768, (6, 10, 14, 23), 3.5, 304.4)}


def name_of(path):
    return f"{path.parent.name}-{path.stem}"


load_meta_clip = cache(partial(load_clip, device="meta"))  # one tower per architecture


@pytest.mark.parametrize("path", CONFIGS + TRANSFER, ids=name_of)
def test_config_loads_and_documents_itself(path):
    cfg = LazyConfig.load(str(path))
    assert set(cfg) >= PARTS
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config-file {path.relative_to(REPO)}" in docstring
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
def test_every_recipe_is_what_its_name_says(path, monkeypatch):
    """The recipe's values, and sizes of everything that it builds."""
    data, is_last, is_large = path.parent.name, path.stem.endswith("last"), "vitl14" in path.stem
    is_lvis = data == "ov_lvis"
    cfg = LazyConfig.load(str(path))
    assert cfg.model.clip.dense == ("plain" if is_last else "last-block-value")
    assert ("openai" in path.stem) == cfg.model.clip.arch.endswith("quickgelu")
    assert cfg.model.clip.checkpoint.endswith(".pt")
    assert cfg.evaluation.table == data
    assert cfg.model.square_size == (896 if is_large else 1024 if is_lvis else 640)

    patch = 14 if is_large else 16
    width, embed_dim, blocks, finest, size = TOWERS[patch]
    monkeypatch.setattr(frozen_clip, "load_clip", load_meta_clip)
    monkeypatch.setattr(FrozenClip, "_autocast", lambda self, images: nullcontext())  # meta has no autocast
    rows = torch.randn(8, embed_dim, generator=torch.Generator().manual_seed(0))
    words = ClassEmbeddings(tuple("abcdefg"), rows[:-1], rows[-1], "random rows", "none")
    is_base = torch.arange(7) % 4 > 0
    with torch.device("meta"):
        model = build_model({**read_config(str(path), RANDOM, "").model, "vocabulary": words, "is_base": is_base})
    backbone, heads = model.backbone.eval(), model.roi_heads
    clip, predictor = backbone.clip, heads.box_predictor
    assert (clip.width, clip.embed_dim, clip.patch_size, clip.blocks) == (width, embed_dim, patch, blocks)
    assert sum(weight.numel() for weight in clip.tower.parameters()) / 1e6 == pytest.approx(size, abs=0.2)
    assert list(backbone.strides.values()) == [finest * 2**level for level in range(5)]
    if not is_lvis:  # whose backbones are the same
        maps = backbone(torch.empty(2, 3, 8 * patch, 14 * patch, device="meta"))
        grids = ((32, 56), (16, 28), (8, 14), (4, 7), (2, 4))
        assert [tuple(maps[name].shape) for name in backbone.strides] == [(2, 256, *grid) for grid in grids]
        assert maps["dense"].shape == (2, embed_dim, 8, 14)
    assert heads.box_pooler.strides == (finest, 2 * finest, 4 * finest, 8 * finest)
    assert heads.dense_stride == patch
    assert heads.box_head.fc1.weight.shape == (embed_dim, 256 * 7 * 7)
    assert heads.mask_on == heads.proposal_matcher.low_quality == is_lvis
    assert predictor.fusion == {"alpha": 0.1, "beta": (0.4 if is_large else 0.6) if is_lvis else 0.8, "fusion": "f-vit"}
    assert predictor.vlm_temperature == (50 if is_lvis else 75)
    rpn = model.proposal_generator
    assert (rpn.pre_nms_topk, rpn.post_nms_topk) == ({True: 2000, False: 2000}, {True: 1000, False: 1000})
    assert (rpn.batch_size_per_image, rpn.positive_fraction, rpn.nms_thresh) == (256, 0.5, 0.7)
    assert (heads.batch_size_per_image, heads.positive_fraction, heads.proposal_append_gt) == (512, 0.25, True)
    limits = (predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image)
    assert limits == ((1e-4, 0.5, 300) if is_lvis else (0.01, 0.4, 100))
    assert cfg.model.classifier == {
        "temperature": 50, "fixed_temperature": None, "background_weight": 0.9 if is_lvis else 0.6,
        "zero_background": False,
    }  # fmt: skip


def test_transfer_scores_all_classes_alike():
    """FACTS of F-ViT's transfer: the detector of OV-LVIS, its temperatures fixed, one alpha for every class."""
    assert len(TRANSFER) == 4
    for path in TRANSFER:
        cfg, trained = (LazyConfig.load(str(each)) for each in (path, FOLDER / "ov_lvis" / trained_by(path)))
        heads, classifier, test = cfg.model.roi_heads, cfg.model.classifier, cfg.dataloader.test.dataset
        assert (heads.alpha, heads.beta, heads.vlm_temperature, classifier.fixed_temperature) == (0.2, 0.2, 120, 50)
        assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_image, heads.masks) == (1e-4, 0.5, 300, True)
        assert (cfg.model.clip, cfg.model.square_size) == (trained.model.clip, 896)
        assert (list(test.novel), list(cfg.evaluation.kinds)) == ([], ["box"])
        assert path.stem.rsplit("_", 1)[1] in test.json_file
    assert len({LazyConfig.load(str(path)).train.output_dir for path in TRANSFER}) == 4


def trained_by(path):
    return f"{path.stem.rsplit('_', 1)[0]}.py"


def test_schedules_are_f_vit_s():
    """FACTS of its configs: AdamW 1e-4, weight decay 0.1, clip 1.0; 3 epochs, or 48 with lr / 10 at 32 and 44."""
    coco, lvis = (LazyConfig.load(str(FOLDER / name / "fvit_vitb16_last.py")) for name in SETS)
    for cfg in (coco, lvis):
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, list(cfg.optimizer.betas)) == (1e-4, 0.1, [0.9, 0.999])
        assert (cfg.train.clip_grad_norm, cfg.train.lr_batch_size, cfg.train.seed) == (1.0, 64, 0)
        assert cfg.dataloader.train.batch_size == 8
    for cfg, num_images in ((coco, 107_761), (lvis, 100_170)):
        assert plan_run(cfg, num_images, 8)[0] == 1
        schedule = instantiate(cfg.lr_multiplier)
        assert schedule(0.0) == pytest.approx(0.001)
        assert schedule(250 / cfg.train.max_iter) == pytest.approx(1.0)
        assert schedule(200 / cfg.train.max_iter) < 0.9
    assert lengths(coco) == (5052, 1684, 1684)
    assert lengths(lvis) == (48 * 1566, 12 * 1566, 4 * 1566)
    assert instantiate(coco.lr_multiplier)(0.999) == 1.0
    schedule = instantiate(lvis.lr_multiplier)
    values = [schedule(epoch / 48) for epoch in (31.9, 32.1, 43.9, 44.1)]
    assert values == pytest.approx([1.0, 0.1, 0.1, 0.01])


def lengths(cfg):
    return cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.period


@pytest.mark.parametrize(
    ("processes", "overrides", "batches", "expected"),
    [
        (4, [], 2, (5052, 1684, 1684)),  # 64 images, by two batches of 8 on each of 4 GPUs
        (1, [], 8, (5052, 1684, 1684)),
        (16, [], 1, (2526, 842, 842)),  # 128 images: as many epochs
        (4, ["train.accumulate=1"], 1, (10104, 3368, 3368)),
        (8, ["train.epochs=1", "train.eval_epochs=0", "train.checkpoint_epochs=0.5"], 1, (1684, 0, 842)),
        (8, ["train.max_iter=100", "train.eval_period=0", "train.checkpointer.period=7"], 1, (100, 0, 7)),
    ],
)
def test_lengths_are_epochs_whatever_the_batch(processes, overrides, batches, expected, caplog, monkeypatch):
    cfg = read_config(str(FOLDER / "ov_coco" / "fvit_vitb16_last.py"), overrides, "")
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level("INFO", "detectron2"):
        assert plan_run(cfg, 107_761, processes)[0] == batches
    assert lengths(cfg) == expected
    images = processes * 8 * batches
    assert cfg.lr_multiplier.warmup_length == pytest.approx(min(1, 250 * 64 / images / expected[0]))
    assert f" epochs of 107761 images are {expected[0]} iterations of {images} (" in caplog.text


def test_lengths_given_in_iterations_stay():
    steps = ["lr_multiplier.scheduler.milestones=[500,700]", "lr_multiplier.warmup_length=0.25", "train.max_iter=1000"]
    cfg = read_config(str(FOLDER / "ov_lvis" / "fvit_vitb16_last.py"), steps, "")
    plan_run(cfg, 100_170, 4)
    schedule = instantiate(cfg.lr_multiplier)
    assert [schedule(where) for where in (0.24, 0.3, 0.6, 0.8)] == pytest.approx([0.96, 1, 0.1, 0.01], abs=1e-3)
    for name in ("epochs", "eval_epochs", "checkpoint_epochs"):
        cfg = read_config(str(FOLDER / "ov_coco" / "fvit_vitb16_last.py"), [f"train.{name}=-1"], "")
        with pytest.raises(ValueError, match=rf"train\.{name} must be .*, got -1"):
            plan_run(cfg, 100, 1)
