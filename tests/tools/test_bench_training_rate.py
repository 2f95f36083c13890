"""Training rates: FLOPs against a formula, sides that compute the same, small runs of every track, the record."""

import argparse
import json

import bench_clip_steps
import bench_train_steps
import bench_training_rate
import clip_train_parts
import open_clip
import pytest
import torch
from bench_clip_steps import clip_side
from bench_flops import count_flops, peak_tflops
from bench_timing import Ratio
from bench_train_steps import Numerics, cls_side, dino_side, read_recipe, release_side
from bench_training_rate import build_sides, main, rate_of

CPU = torch.device("cpu")
TRACK = "cls_pretrain_ViT-S/16"
TINY_DINO = ("--arch", "vit_tiny", "--patch_size", "8", "--global_crop_size", "32", "--local_crop_size", "16")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The recipe with two narrow blocks at 32 pixels."""

    def recipe(name, pool, image_size):
        cfg = read_recipe(name, pool, image_size)
        cfg.model.model.update(num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        return cfg

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_training_rate, "read_recipe", recipe)
    return tmp_path


@pytest.mark.parametrize("pool", ["cls", "last"])
def test_flops_are_those_of_the_formula(tiny, pool):
    """Forward once and backward twice each product; the first layer has no gradient for the images."""
    cfg = bench_training_rate.read_recipe("vits16_in1k", pool, 64)
    side, _ = cls_side(cfg, 3, Numerics(CPU))
    N, T, D, H, layers, classes = 16, 17, 32, 64, 2, 1000
    block = T * (4 * D * D + 2 * D * H) + 2 * T * T * D  # multiplications, of which each has an addition
    assert count_flops(lambda: side(1)) == 3 * 2 * (3 * (layers * block + D * classes) + 2 * N * 3 * 16 * 16 * D)


def test_peaks_by_the_longest_name():
    assert peak_tflops("NVIDIA H200") == 989.0
    assert peak_tflops("NVIDIA H200 NVL") == 835.0
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_tflops("NVIDIA GeForce RTX 4090") is None


def test_rate_of_rounds():
    assert rate_of([2.0, 1.0, 4.0], 8) == Ratio(4.0, 2.0, 8.0)


def test_the_releases_loop_computes_what_ours_does(tiny, monkeypatch):
    args = argparse.Namespace(batch=2, image_size=32)
    numerics = Numerics(CPU)
    sides = build_sides(TRACK, args, numerics)
    assert list(sides) == ["alone", "cls", "last", "release"]
    monkeypatch.setattr(bench_train_steps, "straightforward_pool", lambda tokens, top_k: 2 * tokens.mean(dim=1))
    with pytest.raises(RuntimeError, match="release does not compute what ours does"):
        build_sides(TRACK, args, numerics)


def test_both_loops_go_on_alike(tiny):
    """Five steps of the release's loop and of ours, from the same weights on the same batch."""
    cfgs = [bench_training_rate.read_recipe("vits16_in1k", "last", 32) for _ in range(2)]
    built = [make(cfg, 2, Numerics(CPU)) for make, cfg in zip((cls_side, release_side), cfgs, strict=True)]
    for side, _ in built:
        side(3)
        side(2)
    ours, theirs = (curve() for _, curve in built)
    assert len(ours) == 5
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_dino_and_clip_steps(pooling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    side = dino_side(pooling, 2, Numerics(CPU, bf16=True), *TINY_DINO, "--out_dim", "32", "--local_crops_number", "2")
    assert count_flops(lambda: side(2)) == 2 * count_flops(lambda: side(1)) > 0
    open_clip.add_model_config(clip_train_parts.write_config("rate_vit_clip.json"))
    side = clip_side("rate_vit_clip", pooling, 3, Numerics(CPU))
    assert count_flops(lambda: side(2)) == 2 * count_flops(lambda: side(1)) > 0
    clip_side("rate_vit_clip", pooling, 3, Numerics(CPU, bf16=True))(1)


def test_clip_groups_are_open_clips():
    model = torch.nn.ModuleDict({"ln_a": torch.nn.LayerNorm(4), "proj": torch.nn.Linear(4, 4)})
    free, decayed = bench_clip_steps._clip_groups(model)
    assert [group["weight_decay"] for group in (free, decayed)] == [0.0, 0.05]
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)]
    assert len(free["params"]) == 3


def test_command_on_a_cpu_gives_ratios_and_no_rate(tiny, capsys):
    main(["--device", "cpu", "--image-size", "32", "--rounds", "1", "--record"])
    shown = capsys.readouterr().out
    assert f"{TRACK}: step with LaSt over CLS" in shown
    assert "goal at most 2%" in shown
    assert "goal at least 1x" in shown
    assert "GPU rates (images/s, utilisation) have not been run here" in shown
    assert "images/s" not in shown.replace("(images/s", "")
    record = json.loads((tiny / "results" / "bench_training_rate.json").read_text())
    names = {f"last_over_cls_{TRACK}", f"last_percent_{TRACK}", f"over_release_{TRACK}"}
    ends = {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
    assert set(record["metrics"]) == ends | {f"last_percent_{TRACK}_limit", f"over_release_{TRACK}_goal"}
    assert record["config"]["batches"] == {TRACK: 2}


def test_rates_and_utilisation_as_a_gpu_would_report_them(tiny, capsys, monkeypatch):
    """The arithmetic of the GPU's branch; its times are not measured here."""
    kept = {}

    class Report:
        device = CPU

        def add(self, name, words, value, **bound):
            kept[name] = value

        def keep(self, **numbers):
            kept.update(numbers)

    args = argparse.Namespace(batch=2, image_size=64, peak_tflops=None)
    rates = {"last": Ratio(1000.0, 900.0, 1100.0), "release": Ratio(500.0, 400.0, 600.0)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    bench_training_rate.report_rates(TRACK, args, Report(), rates)
    assert kept[TRACK] == rates["last"]
    assert kept[f"{TRACK}_release"] == 500.0
    flops = 1e9 * kept[f"gflops_per_image_{TRACK}"]
    assert flops == bench_training_rate.flops_per_image(TRACK, args, CPU)
    assert kept[f"mfu_{TRACK}"].median == pytest.approx(100 * 1000 * flops / 989e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    bench_training_rate.report_rates(TRACK, args, Report(), rates)
    assert "give --peak-tflops" in capsys.readouterr().out


def test_errors(tiny, capsys):
    for flags, message in ((["--tracks", "resnet"], "invalid choice"), (["--batch", "0"], "must be at least 1")):
        with pytest.raises(SystemExit) as stopped:
            main(["--device", "cpu", *flags])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
