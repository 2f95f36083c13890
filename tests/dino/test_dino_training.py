"""main_dino.py end to end on synthetic images: learning, resuming, two processes, checkpoint formats, every fault."""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import dino_step
import dino_training
import main_dino
import numpy as np
import pytest
import torch
from dino_data import open_training_images
from dino_parts import TINY_RUN, arguments, run, shrink
from torch.testing import assert_close

import last_vit
from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.models import load_trained_model
from last_vit.runtime import seed_everything

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Tiny networks on the CPU, in a folder of their own."""
    for module, name, value in shrink():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


def read(path="run/checkpoint.pth"):
    return torch.load(path, weights_only=True)


def log(folder="run"):
    lines = [json.loads(line) for line in Path(folder, "log.txt").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_resumed_as_whole():
    """Checkpoint and log of the folder "run" are those of "whole", which was never stopped."""
    whole, resumed = read("whole/checkpoint.pth"), read()
    for checkpoint in (whole, resumed):
        checkpoint["args"].pop("output_dir")
    for key in ("args", "pooling"):
        assert resumed.pop(key) == whole.pop(key)
    assert_close(resumed, whole, rtol=0, atol=0)
    assert log() == log("whole")


def test_steps_on_one_batch_lower_the_loss():
    """With teacher and centre standing still, the student comes to agree with the teacher."""
    options = {"epochs": 20, "warmup_epochs": 0, "lr": 0.1, "momentum_teacher": 1.0, "drop_path_rate": 0.0}
    args = main_dino.main.build_parser().parse_args(arguments(**options, pooling="last", top_k=0.25))
    seed_everything(0)
    step, _ = dino_training.build_step(args, 1, torch.device("cpu"))
    step.loss.center_momentum = 1.0
    crops = [torch.randn(4, 3, side, side) for side in (32, 32, 16, 16)]
    losses = [step(crops, i, i)["loss"] for i in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_files_of_a_run():
    options = {"saveckp_freq": 2, "epochs": 3, "pooling": "last", "top_k": 2}
    assert run(**options) == 0
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoint.pth", "checkpoint0000.pth", "checkpoint0002.pth", "log.txt",
    ]  # fmt: skip
    checkpoint = read()
    assert set(checkpoint) == {"student", "teacher", "optimizer", "epoch", "args", "dino_loss", "pooling"}
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in checkpoint["student"])
    assert all(name.startswith(("backbone.", "head.")) for name in checkpoint["teacher"])
    assert checkpoint["dino_loss"]["center"].shape == (1, 32)
    assert (checkpoint["epoch"], read("run/checkpoint0000.pth")["epoch"]) == (3, 1)
    assert (checkpoint["args"]["arch"], checkpoint["args"]["top_k"]) == ("vit_tiny", 2)
    assert checkpoint["pooling"] == {"pool": "last", "top_k": 2, "variant": "release", "sigma": None}
    assert set(log()[0]) == {
        "train_loss", "train_loss_global", "train_loss_local", "train_teacher_entropy", "train_feature_spread",
        "train_lr", "train_wd", "epoch",
    }  # fmt: skip
    assert run(**options) == 0, "a finished run has nothing left to do"
    assert len(log()) == 3


def test_diagnostics_read_the_checkpoint_as_it_was_trained():
    assert run(epochs=1, pooling="last", top_k=0.5, variant="paper") == 0
    loaded = load_trained_model("dino:vit_tiny/8", "run/checkpoint.pth")
    assert loaded.pooling == {"pool": "last", "top_k": 0.5, "variant": "paper", "sigma": None}
    assert loaded.preprocessing.crop == 32
    assert torch.equal(loaded.model.pos_embed, read()["teacher"]["backbone.pos_embed"])


@pytest.mark.parametrize("iteration", [3, 5])
def test_killed_and_resumed_is_bit_identical(monkeypatch, iteration):
    """Whether killed in the second epoch or at its start: weights, centre, optimizer, log and data all go on."""
    options = {"epochs": 3, "freeze_last_layer": 1, "pooling": "last", "top_k": 0.5, "drop_path_rate": 0.3}
    assert run(**options, output_dir="whole") == 0
    original = dino_step.DinoStep.__call__

    def call(self, crops, epoch, i):
        if i == iteration:  # as a killed process leaves it: nothing after that iteration is written
            raise KeyboardInterrupt
        return original(self, crops, epoch, i)

    with monkeypatch.context() as patch:
        patch.setattr(dino_step.DinoStep, "__call__", call)
        assert run(**options) == 130
    assert read()["epoch"] == 1
    with open("run/log.txt", "a") as file:  # the kill fell between the log's line and the checkpoint
        file.write(json.dumps({"train_loss": 0.0, "epoch": 1}) + "\n" + '{"train_l')
    torch.manual_seed(99)
    assert run(**options) == 0
    assert_resumed_as_whole()


def test_accumulation_gives_the_step_of_the_whole_batch():
    options = {"drop_path_rate": 0.0, "optimizer": "sgd"}
    assert run(**options, output_dir="whole") == 0
    assert run(**options, accumulation_steps=3) == 0  # 4 images as 2 + 1 + 1 or 2 + 2
    for key in ("student", "teacher", "dino_loss"):
        assert_close(read()[key], read("whole/checkpoint.pth")[key], rtol=1e-5, atol=1e-6)


TINY_SCRIPT = """
import os, signal, dino_step, main_dino, dino_parts
for module, name, value in dino_parts.shrink():
    setattr(module, name, value)
original = dino_step.DinoStep.__call__
def call(self, crops, epoch, i):
    if i == 4 and "stop" in os.environ:
        os.kill(os.getpid(), signal.SIGINT)
    return original(self, crops, epoch, i)
dino_step.DinoStep.__call__ = call
main_dino.main()
"""


def start_tiny_dino(*launch, **environment):
    """tiny_dino.py, in the current folder, in a process of its own."""
    Path("tiny_dino.py").write_text(TINY_SCRIPT)
    folders = os.pathsep.join(map(str, (REPO, REPO / "dino", REPO / "tests" / "parts")))
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": folders, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *launch], env={**os.environ, **environment}, **pipes)


def test_two_processes_equal_one_with_the_same_global_batch():
    """Gloo on CPUs under torchrun; drop path, whose chance is the process's own, is off."""
    options = {"drop_path_rate": 0.0, "optimizer": "sgd", "pooling": "last", "top_k": 0.5}
    words = ["tiny_dino.py", *arguments(**options, batch_size_per_gpu=2, output_dir="two")]
    process = start_tiny_dino("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words)
    assert run(**options, batch_size_per_gpu=4, output_dir="one") == 0
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two = read("one/checkpoint.pth"), read("two/checkpoint.pth")
    for key in ("student", "teacher", "dino_loss"):
        assert_close(two[key], one[key], rtol=0, atol=1e-5)
    for ours, theirs in zip(log("two"), log("one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_ctrl_c_saves_at_the_step_border_and_the_named_command_goes_on():
    """A real signal; the rest of the epoch, its log too, is bit by bit what it would have been."""
    options = {"pooling": "last", "top_k": 0.5, "num_workers": 1}
    assert run(**options, output_dir="whole") == 0
    words = ["tiny_dino.py", *arguments(**options)]
    same_sums = f"{torch.get_num_threads()}"
    process = start_tiny_dino(*words, stop="", OMP_NUM_THREADS=same_sums)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    line = errors.splitlines()[-1]
    assert line.startswith("main_dino.py: stopped after iteration 2 of epoch 2, saved in run/checkpoint.pth; go on")
    assert line.endswith(shlex.join(["python", *words]))
    assert "Traceback" not in errors
    assert not Path("run/run.lock").exists()
    assert (read()["epoch"], read()["within_epoch"]["iteration"]) == (1, 2)
    assert run(**options, batch_size_per_gpu=3) == 2, "another length of the epoch"
    assert run(**options) == 0
    assert_resumed_as_whole()


def test_entropy_and_spread_tell_a_collapse():
    args = main_dino.main.build_parser().parse_args(arguments(epochs=1))
    step, _ = dino_training.build_step(args, 1, torch.device("cpu"))
    crops = [torch.randn(4, 3, side, side) for side in (32, 32, 16, 16)]
    tokens = torch.eye(192)[:8]  # orthogonal: the mean of 4 has length 1/2
    step.teacher.tokens = lambda views: tokens
    step.teacher.head.forward = lambda tokens: torch.zeros(8, 32)
    stats = step(crops, 0, 0)
    assert stats["feature_spread"] == pytest.approx(0.75**0.5)
    assert stats["teacher_entropy"] == pytest.approx(math.log(32))  # uniform
    tokens = torch.ones(8, 192)
    step.teacher.head.forward = lambda tokens: 1e3 * torch.eye(32)[:8]
    stats = step(crops, 0, 0)
    assert stats["feature_spread"] == pytest.approx(0.0, abs=1e-3)
    assert stats["teacher_entropy"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("spelling", ["--skip-broken", "--skip_broken"])
def test_broken_images_stop_the_run_or_are_left_out(capsys, spelling):
    write_imagenet(SyntheticObjects(6, "train", 40, num_classes=2), Path("imagenet"))
    broken = next(Path("imagenet").rglob("*.JPEG"))
    broken.write_bytes(broken.read_bytes()[:200])
    options = {"data_path": "imagenet", "epochs": 1, "batch_size_per_gpu": 5}
    assert run(**options | {"batch_size_per_gpu": 6}) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{broken.name}.*leave such images out where there is a skip_broken", error), error
    main_dino.main([*arguments(**options), spelling])
    assert len(open_training_images("imagenet", None, skip_broken=True)) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch, capsys, value):
    assert run(epochs=1) == 0
    before = Path("run/checkpoint.pth").read_bytes()
    original = dino_training.MultiCrop.forward

    def forward(self, crops):
        logits = original(self, crops)
        calls.append(logits.requires_grad)
        return logits * value if sum(calls) == 2 and logits.requires_grad else logits  # the student's second step

    calls = []
    monkeypatch.setattr(dino_training.MultiCrop, "forward", forward)
    assert run(epochs=3) == 2
    message = capsys.readouterr().err
    where = (
        r"loss is (nan|inf) at epoch 1, iteration 4; not finite in process 0: student logits; the last checkpoint, .*"
    )
    where += "checkpoint.pth, is good: resume from it with a lower --lr or a smaller --clip_grad$"  # of float32
    assert re.search(where, message), message
    assert Path("run/checkpoint.pth").read_bytes() == before


def test_a_run_of_dinos_own_code_is_continued():
    """A first epoch in DINO's format, with a Namespace, numpy's numbers and no record of ours, goes on as ours does."""
    for folder in ("ours", "theirs"):
        assert run(output_dir=folder, epochs=1) == 0
    checkpoint = read("theirs/checkpoint.pth")
    del checkpoint["pooling"]
    flags = {name: value for name, value in checkpoint["args"].items() if name in TINY_RUN and "crop_size" not in name}
    checkpoint["args"] = argparse.Namespace(**flags, gpu=0, rank=0, world_size=8, dist_backend="nccl")
    checkpoint["fp16_scaler"] = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}
    for group in checkpoint["optimizer"]["param_groups"]:  # as torch 1.7 wrote them
        for name in set(group) - {"params", "lr", "betas", "eps", "weight_decay", "amsgrad"}:
            del group[name]
        group["lr"] = np.float64(group["lr"])
    for state in checkpoint["optimizer"]["state"].values():
        state["step"] = int(state["step"])
    torch.save(checkpoint, "theirs/checkpoint.pth")
    for folder in ("ours", "theirs"):
        assert run(output_dir=folder, epochs=2) == 0
    resumed = read("theirs/checkpoint.pth")
    assert_close(resumed["student"], read("ours/checkpoint.pth")["student"], rtol=0, atol=0)
    assert resumed["epoch"] == 2
    assert resumed["optimizer"]["param_groups"][0]["fused"] is True
    assert [line["epoch"] for line in log("theirs")] == [0, 1]
    assert {int(state["step"]) for state in resumed["optimizer"]["state"].values()} == {6}
    assert run(output_dir="theirs", epochs=3, pooling="mean") == 2


def test_resuming_another_run(capsys):
    assert run(epochs=1) == 0
    for options, message in (
        ({"pooling": "mean"}, "was trained with pooling .*'cls'.* --pooling"),
        ({"optimizer": "lars"}, "trained with --optimizer adamw, this run has --optimizer lars"),
        ({"out_dim": 64}, r"cannot resume.*other shape.*head.last_layer.weight_g \[32, 1\] -> \[64, 1\]"),
        ({"norm_last_layer": False}, "optimizer holds .* --norm_last_layer"),
    ):
        capsys.readouterr()
        assert run(**options) == 2
        assert re.search(message, capsys.readouterr().err, re.DOTALL)
    torch.save({"cls_token": torch.zeros(1)}, "run/checkpoint.pth")
    assert run() == 2
    assert "is no training checkpoint of DINO: it lacks student, teacher, optimizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pooling": "last", "top_k": 5},
            r"does not fit crops of 16 pixels: top_k must be in \[1, 4\].* as a share",
        ),
        ({"pooling": "last", "top_k": "1.5"}, r"top_k.* 1\.5"),
        ({"local_crop_size": 4}, "crop is smaller than a patch"),
        ({"batch_size_per_gpu": 13}, "synthetic has 12 images, less than one step takes"),
        ({"data_path": "absent/train"}, "no folder .*absent/train: expected"),
        ({"arch": "vit_huge"}, "--arch 'vit_huge' is not supported: vit_.*resnet50"),
        ({"arch": "xcit_small"}, "none of timm's XCiT models.*xcit_small_12_p16"),
        ({"arch": "squeezenet1_1"}, "--arch 'squeezenet1_1' is not supported"),
    ],
)
def test_faults(capsys, options, message):
    assert run(**options, epochs=1) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error


def test_other_architectures(capsys):
    """DINO's read-out of a ConvNet is its average pool; batch norm gives the teacher's names a prefix, as in DINO."""
    options = {"global_crop_size": 64, "local_crop_size": 32, "epochs": 1}
    for arch in ("shufflenet_v2_x0_5", "xcit_nano_12_p16"):
        assert run(**options, arch=arch, output_dir=arch) == 0
        checkpoint = read(f"{arch}/checkpoint.pth")
        assert checkpoint["pooling"] == {"pool": "host"}
        assert all(name.startswith("module.") for name in checkpoint["teacher"])
    options |= {"arch": "shufflenet_v2_x0_5", "pooling": "last"}
    assert run(**options, top_k=2) == 2
    assert "does not fit crops of 32 pixels: top_k must be in [1, 1]" in capsys.readouterr().err
    for epochs in (1, 2):
        assert run(**{**options, "epochs": epochs}, top_k=0.5) == 0
    assert (read()["pooling"]["pool"], read()["epoch"]) == ("last", 2)


def test_switches(monkeypatch):
    """bfloat16, batch norm in the head, no local crops, compiled backbones that keep their names, fused pooling."""
    compiled, compile_module, fused = [], torch.nn.Module.compile, []

    def compile_eagerly(module, dynamic):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    monkeypatch.setattr(last_vit, "use_fused_pool", fused.append)
    assert run(bf16=True, use_bn_in_head=True, local_crops_number=0, compile=True, fused_pool=True, epochs=1) == 0
    assert {"module.head.mlp.6.weight", "module.backbone.cls_token"} <= set(read()["teacher"])
    assert 1 < log()[0]["train_loss"] < 10
    assert "train_loss_local" not in log()[0]
    assert compiled == ["DinoVisionTransformer"] * 2
    assert fused == [True]
