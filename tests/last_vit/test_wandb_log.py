"""Weights & Biases beside the other logs: unique names, one run per training, every trainer, offline where it is."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dino_parts import run, shrink
from lazy_parts import REPO, LazyTrain

from last_vit.wandb_log import open_wandb

DEBUG = REPO / "cls_pretrain/configs/debug_synthetic.py"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """What a stand-in for wandb was asked to begin, and what was logged."""
    begun = []

    def init(**asked):
        asked["logged"] = []
        begun.append(asked)
        log = lambda values, step: asked["logged"].append((step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: asked.update(is_over=True))

    monkeypatch.chdir(tmp_path)
    stand_in = SimpleNamespace(init=init, errors=SimpleNamespace(Error=RuntimeError))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return begun


def test_names_are_unique_and_a_resumed_training_goes_on(begun):
    for folder in ("a/run", "a/run", "b/run"):
        open_wandb(folder, {"lr": 0.1})
    ids = [each["id"] for each in begun]
    assert ids[0] == ids[1] != ids[2]
    assert [each["name"] for each in begun] == [f"run-{number}" for number in ids]
    assert (begun[0]["resume"], begun[0]["dir"], begun[0]["config"]) == ("allow", "a/run", {"lr": 0.1})


def test_trainers_log_there_when_asked(begun, monkeypatch):
    for module, name, value in shrink():
        monkeypatch.setattr(module, name, value)
    assert run(epochs=2, wandb=True) == run(output_dir="without", epochs=1) == 0
    (dino,) = begun
    lines = [json.loads(line) for line in Path("run/log.txt").read_text().splitlines()]
    assert dino["logged"] == [(line["epoch"], line) for line in lines]
    assert dino["config"]["arch"] == "vit_tiny"
    train = ["train.output_dir=lazy", "train.max_iter=10", "train.log_period=2", "train.wandb=True"]
    assert LazyTrain("cls_pretrain").run(*train, config=DEBUG) == 0
    assert (begun[1]["config"]["max_iter"], begun[1]["is_over"]) == (10, True)
    lines = [json.loads(line) for line in Path("lazy/metrics.json").read_text().splitlines()]
    kept = {name: value for _, values in begun[1]["logged"] for name, value in values.items()}
    expected = {name: value for line in lines for name, value in line.items()}
    assert kept["acc1"] == expected["acc1"]
    losses = [(step, values["total_loss"]) for step, values in begun[1]["logged"] if "total_loss" in values]
    assert [step for step, _ in losses] == [line["iteration"] for line in lines if "total_loss" in line]


def test_what_keeps_it_from_starting_is_said(begun, monkeypatch, capsys):
    def no_login(**_):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(sys.modules["wandb"], "init", no_login)
    with pytest.raises(ValueError, match=r"not logged in\); WANDB_MODE=offline needs no login"):
        open_wandb("run", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="leave wandb off"):
        open_wandb("run", {})


def test_offline_keeps_what_was_logged(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train = [f"train.output_dir={tmp_path}/run", "train.max_iter=10", "train.wandb=True"]
    assert LazyTrain("cls_pretrain").run(*train, config=DEBUG) == 0
    (kept,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert all(name in kept.read_bytes() for name in (b"total_loss", b"acc1", b"data_time"))
