"""Every bench prints its help, and those of this file run whole on tiny models: the numbers there mean nothing."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import bench_dino
import bench_lvis_eval
import bench_object_discovery
import bench_patch_hit
import bench_probe
import bench_votes
import bench_zero_shot_seg
import pytest
import run_all
import torch
from clip_parts import tiny_clip
from clip_train_parts import TINY
from speed_results import read_speed_ratios
from torchvision.models import VisionTransformer

from last_vit.dino_vit import DinoVisionTransformer
from last_vit.results import read_results

BENCH = Path(run_all.__file__).parent
NAMES = [bench.name for bench in run_all.BENCHES if (BENCH / f"{bench.name}.py").exists()]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to write results in; as many threads as before."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def recorded(bench, *argv):
    """The ratios of one recorded run, by name."""
    bench.main(["--device", "cpu", "--rounds", "1", "--record", *argv])
    (record,) = read_results(Path("results"))
    assert record.name == record.row == bench.__name__
    return {each.name: each for each in read_speed_ratios(record)}


@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--device", "--record"))


def test_lvis_eval():
    found = recorded(bench_lvis_eval, "--images", "4", "--detections", "6", "--classes", "12")
    assert set(found) == {"speedup_box", "speedup_mask"}
    assert not any(each.goal for each in found.values())  # stated for 1,000 images


def test_lvis_sides_must_agree(monkeypatch):
    monkeypatch.setattr(bench_lvis_eval, "plain_ap", lambda *_: (torch.zeros(12).numpy(),) * 2)
    with pytest.raises(RuntimeError, match="do not compute the same AP"):
        bench_lvis_eval.main(["--images", "4", "--detections", "6", "--classes", "12"])


@pytest.mark.parametrize("bench", [bench_patch_hit, bench_probe])
def test_diagnostic_loops(bench):
    more = ["--percents", "1"] if bench is bench_probe else ["--batches", "1"]
    found = recorded(bench, "--model", "timm:test_vit", "--batch-size", "2", *more)
    assert len(found) == 2
    assert all(each.goal in (0.85, 0.90) and not each.is_limit for each in found.values())


def small_vit(size, patch, **_):
    return VisionTransformer(size, patch, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)


def test_votes(monkeypatch):
    monkeypatch.setattr(bench_votes, "VisionTransformer", small_vit)
    monkeypatch.setattr(bench_votes, "B", 1)
    monkeypatch.setattr(bench_votes, "D", 12)
    assert len(recorded(bench_votes)) == 9


def small_dino(arch, patch, drop_path_rate=0.0, width=16):
    return DinoVisionTransformer(224, patch, width, 1 + (width == 16), 2, drop_path_rate)


def test_dino(monkeypatch):
    """Both sides, which must compute the same loss."""
    monkeypatch.setattr(bench_dino, "build_dino_vit", partial(small_dino, width=384))
    monkeypatch.setattr(bench_dino.dino_head, "DinoHead", partial(bench_dino.dino_head.DinoHead, hidden_dim=16))
    monkeypatch.setattr(bench_dino, "OUT_DIM", 32)
    monkeypatch.setattr(bench_dino, "NUM_LOCAL", 1)
    found = recorded(bench_dino)
    assert found["speedup_float32"].goal == 1.3
    assert (found["last_bfloat16"].unit, found["last_bfloat16"].is_limit) == ("%", True)


def test_object_discovery(monkeypatch):
    """The bare LOST pipeline reads the keys that ours reads."""
    monkeypatch.setattr(bench_object_discovery, "build_dino_vit", lambda arch, patch: small_dino(arch, patch))
    assert len(recorded(bench_object_discovery)) == 8


def test_clip():
    import bench_clip
    import open_clip

    Path("tiny_bench_clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(Path("tiny_bench_clip.json"))
    found = recorded(bench_clip, "--model", "tiny_bench_clip", "--batch", "2")
    assert found["step_fp32"].is_limit
    assert found["step_fp32"].goal == 1.03


def test_zero_shot_segmentation(monkeypatch):
    """Labels of both sides agree, whatever the model."""
    model = tiny_clip(image_size=64, patch_size=16)
    monkeypatch.setattr(bench_zero_shot_seg, "load_clip", lambda *_, **__: type("Loaded", (), {"model": model}))
    for name, value in {"NUM_NAMES": 3, "EMBED_DIM": 16, "IMAGE_HW": (96, 128), "OUTPUT_HW": (70, 90)}.items():
        monkeypatch.setattr(bench_zero_shot_seg, name, value)
    monkeypatch.setattr(bench_zero_shot_seg, "CROP", 64)
    monkeypatch.setattr(bench_zero_shot_seg, "STRIDE", 32)
    assert "speedup_labels" in recorded(bench_zero_shot_seg)


def test_detector(monkeypatch):
    import bench_fvit
    import open_clip
    from fvit_parts import SMALL_HEADS, SMALL_RPN, TINY_CLIP

    def build_small(*parts, roi_heads):
        return build_fvit(*parts, channels=16, rpn=SMALL_RPN, roi_heads={**SMALL_HEADS, **roi_heads})

    build_fvit = bench_fvit.build_fvit
    monkeypatch.setattr(bench_fvit, "build_fvit", build_small)
    Path("tiny_bench_fvit.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(Path("tiny_bench_fvit.json"))
    monkeypatch.setattr(bench_fvit, "CLASSES", 900)
    found = recorded(bench_fvit, "--arch", "tiny_bench_fvit", "--size", "64", "--regions", "8")
    assert found["text"].is_limit is False  # no goal at this size
    assert {"speedup_frozen", "speedup_frozen_autocast"} < set(found)
