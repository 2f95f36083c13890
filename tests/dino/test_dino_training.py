"""main_dino.py end to end on synthetic images: learning, resuming, two processes, checkpoint formats, every fault."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dino_step
import dino_training
import numpy as np
import pytest
import torch
from dino_options import parse_options
from dino_parts import TINY_RUN, arguments, run, shrink

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


def assert_same(a, b, **tolerance):
    """Two nested structures of a checkpoint are equal, tensors bit by bit or within `tolerance`."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], **tolerance)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right, **tolerance)
    else:
        assert a == b


def kill_at(monkeypatch, iteration):
    """Raise in the middle of a run, as a killed process leaves it: nothing after that iteration is written."""
    original = dino_step.DinoStep.__call__

    def call(self, crops, epoch, i):
        if i == iteration:
            raise KeyboardInterrupt
        return original(self, crops, epoch, i)

    monkeypatch.setattr(dino_step.DinoStep, "__call__", call)
    return lambda: monkeypatch.setattr(dino_step.DinoStep, "__call__", original)


def test_steps_on_one_batch_lower_the_loss():
    """With teacher and centre standing still, the student comes to agree with the teacher."""
    options = {"epochs": 20, "warmup_epochs": 0, "lr": 0.1, "momentum_teacher": 1.0, "drop_path_rate": 0.0}
    args = parse_options("", arguments(**options, pooling="last", top_k=0.25))
    seed_everything(0)
    step, _ = dino_training.build_step(args, 1, torch.device("cpu"))
    step.loss.center_momentum = 1.0
    crops = [torch.randn(4, 3, side, side) for side in (32, 32, 16, 16)]
    losses = [step(crops, i, i)["loss"] for i in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_files_of_a_run(capsys):
    assert run(saveckp_freq=2, epochs=3, pooling="last", top_k=2) == 0
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoint.pth", "checkpoint0000.pth", "checkpoint0002.pth", "log.txt",
    ]  # fmt: skip
    checkpoint = read()
    assert set(checkpoint) == {"student", "teacher", "optimizer", "epoch", "args", "dino_loss", "pooling"}
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in checkpoint["student"])
    assert all(name.startswith(("backbone.", "head.")) for name in checkpoint["teacher"])
    assert checkpoint["dino_loss"]["center"].shape == (1, 32)
    assert checkpoint["epoch"] == 3
    assert checkpoint["args"]["arch"] == "vit_tiny"
    assert checkpoint["args"]["top_k"] == 2
    assert checkpoint["pooling"] == {"pool": "last", "top_k": 2, "variant": "release", "sigma": None}
    assert read("run/checkpoint0000.pth")["epoch"] == 1
    line = log()[0]
    assert set(line) == {"train_loss", "train_loss_global", "train_loss_local", "train_lr", "train_wd", "epoch"}
    assert run(saveckp_freq=2, epochs=3, pooling="last", top_k=2) == 0, "a finished run has nothing left to do"
    assert len(log()) == 3


def test_diagnostics_read_the_checkpoint_as_it_was_trained():
    assert run(pooling="last", top_k=0.5, variant="paper") == 0
    loaded = load_trained_model("dino:vit_tiny/8", "run/checkpoint.pth")
    assert loaded.pooling == {"pool": "last", "top_k": 0.5, "variant": "paper", "sigma": None}
    assert loaded.preprocessing.crop == 32
    teacher = read()["teacher"]
    assert torch.equal(loaded.model.pos_embed, teacher["backbone.pos_embed"])
    assert run(output_dir="cls") == 0
    assert load_trained_model("dino:vit_tiny/8", "cls/checkpoint.pth").pooling["pool"] == "cls"


@pytest.mark.parametrize("iteration", [3, 5])
def test_killed_and_resumed_is_bit_identical(monkeypatch, iteration):
    """Whether killed in the second epoch or at its start: weights, centre, optimizer, log and data all go on."""
    options = {"epochs": 3, "freeze_last_layer": 1, "pooling": "last", "top_k": 0.5, "drop_path_rate": 0.3}
    assert run(**options, output_dir="whole") == 0
    restore = kill_at(monkeypatch, iteration)
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    assert read()["epoch"] == 1
    with open("run/log.txt", "a") as file:  # the kill fell between the log's line and the checkpoint
        file.write(json.dumps({"train_loss": 0.0, "epoch": 1}) + "\n" + '{"train_l')
    restore()
    torch.manual_seed(99)
    assert run(**options) == 0
    whole, resumed = read("whole/checkpoint.pth"), read()
    for checkpoint in (whole, resumed):
        checkpoint["args"].pop("output_dir")
    assert_same(resumed, whole)
    assert log() == log("whole")


def test_accumulation_gives_the_step_of_the_whole_batch():
    options = {"drop_path_rate": 0.0, "optimizer": "sgd"}
    assert run(**options, output_dir="whole") == 0
    assert run(**options, accumulation_steps=3) == 0  # 4 images as 2 + 1 + 1 or 2 + 2
    for key in ("student", "teacher", "dino_loss"):
        assert_same(read()[key], read("whole/checkpoint.pth")[key], rtol=1e-5, atol=1e-6)


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path):
    """Gloo on CPUs under torchrun; drop path, whose chance is the process's own, is off."""
    script = tmp_path / "tiny_dino.py"
    script.write_text(
        "import sys, main_dino, dino_parts\n"
        "for module, name, value in dino_parts.shrink():\n    setattr(module, name, value)\n"
        "sys.exit(main_dino.main(sys.argv[1:]))\n"
    )
    options = {"drop_path_rate": 0.0, "optimizer": "sgd", "pooling": "last", "top_k": 0.5}
    words = arguments(**options, batch_size_per_gpu=2, output_dir="two")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(map(str, (REPO / "dino", REPO / "tests"))),
    }  # fmt: skip
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        *words,
    ]
    process = subprocess.Popen(launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run(**options, batch_size_per_gpu=4, output_dir="one") == 0
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    one, two = read("one/checkpoint.pth"), read("two/checkpoint.pth")
    for key in ("student", "teacher", "dino_loss"):
        assert_same(two[key], one[key], rtol=0, atol=1e-5)
    for ours, theirs in zip(log("two"), log("one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch, capsys, value):
    assert run(epochs=1) == 0
    before = read()
    original = dino_training.MultiCrop.forward

    def forward(self, crops):
        logits = original(self, crops)
        calls.append(logits.requires_grad)
        return logits * value if sum(calls) == 2 and logits.requires_grad else logits  # the student's second step

    calls = []
    monkeypatch.setattr(dino_training.MultiCrop, "forward", forward)
    assert run(epochs=3) != 0
    message = capsys.readouterr().err
    assert re.search(
        r"the loss is (nan|inf) at epoch 1, iteration 4 \(loss_global nan, loss_local nan\)",
        message.replace("inf,", "nan,"),
    )
    assert "not finite in process 0: student logits. The last" in message
    assert "last checkpoint is good" in message
    assert_same(read(), before)


def dino_file(folder):
    """A run's first epoch in the format of DINO's own code: a Namespace, numpy's numbers, unknown to our records."""
    assert run(output_dir=folder, epochs=1) == 0
    checkpoint = read(f"{folder}/checkpoint.pth")
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
    torch.save(checkpoint, f"{folder}/checkpoint.pth")
    return checkpoint


def test_a_run_of_dinos_own_code_is_continued():
    options = {"epochs": 2, "output_dir": "theirs"}
    assert run(epochs=2) == 0
    dino_file("theirs")
    # one epoch of another schedule came before, so only the path is compared: it goes on from epoch 1
    assert run(**options) == 0
    resumed = read("theirs/checkpoint.pth")
    assert resumed["epoch"] == 2
    assert resumed["optimizer"]["param_groups"][0]["fused"] is True
    assert [line["epoch"] for line in log("theirs")] == [0, 1]
    steps = {int(state["step"]) for state in resumed["optimizer"]["state"].values()}
    assert steps == {6}
    assert run(output_dir="theirs", epochs=3, pooling="mean") != 0


def test_dinos_file_gives_the_same_step_as_ours():
    """Reading a Namespace checkpoint and reading ours leads to the same weights."""
    dino_file("theirs")
    assert run(output_dir="ours", epochs=1) == 0
    for folder in ("theirs", "ours"):
        assert run(output_dir=folder, epochs=2) == 0
    assert_same(read("theirs/checkpoint.pth")["student"], read("ours/checkpoint.pth")["student"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "was trained with pooling .*'cls'.* --pooling"),
        ({"optimizer": "lars"}, "trained with --optimizer adamw, this run has --optimizer lars"),
        ({"out_dim": 64}, r"cannot resume.*other shape.*head.last_layer.weight_g \[32, 1\] -> \[64, 1\]"),
        ({"norm_last_layer": False}, "optimizer holds .* --norm_last_layer"),
    ],
)
def test_resuming_another_run(capsys, options, message):
    assert run(epochs=1) == 0
    assert run(**options) != 0
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_resuming_from_a_bare_backbone(capsys):
    Path("run").mkdir()
    torch.save({"cls_token": torch.zeros(1)}, "run/checkpoint.pth")
    assert run() != 0
    assert "is no training checkpoint of DINO: it lacks student, teacher, optimizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pooling": "last", "top_k": 5},
            r"--top_k 5 .*16 in a crop of 32 pixels, 4 in a crop of 16 pixels.*--top_k 0.31",
        ),
        ({"pooling": "last", "top_k": 0.0001}, None),
        ({"pooling": "last", "top_k": "1.5"}, r"share of the patches in \(0, 1\], got 1.5"),
        ({"local_crop_size": 4}, "crop is smaller than a patch"),
        ({"batch_size_per_gpu": 13}, "synthetic has 12 images, less than one step takes"),
        ({"data_path": "absent/train"}, "absent/train does not exist.*class folders of images"),
        ({"arch": "vit_huge"}, "--arch 'vit_huge' is not supported: vit_.*resnet50"),
        ({"arch": "xcit_small"}, "none of timm's XCiT models.*xcit_small_12_p16"),
        ({"arch": "vgg11"}, "--arch 'vgg11' is not supported"),
    ],
)
def test_faults(capsys, options, message):
    status = run(**options, epochs=1)
    error = capsys.readouterr().err
    assert (status == 0) is (message is None), error
    assert message is None or re.search(message, error)
    assert "Traceback" not in error


def test_a_damaged_image_stops_with_its_name(capsys):
    write_imagenet(SyntheticObjects(4, "train", image_size=32, num_classes=2), "images")
    victim = next(Path("images/train").rglob("*.JPEG"))
    victim.write_bytes(victim.read_bytes()[:200])
    assert run(data_path="images/train") != 0
    assert str(victim) in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["shufflenet_v2_x0_5", "xcit_nano_12_p16"])
def test_other_architectures(arch):
    """DINO's read-out of a ConvNet is its average pool; batch norm gives the teacher's names a prefix, as in DINO."""
    assert run(arch=arch, epochs=1, global_crop_size=64, local_crop_size=32, data_path="synthetic") == 0
    checkpoint = read()
    assert checkpoint["pooling"] == {"pool": "host"}
    assert all(name.startswith("module.") for name in checkpoint["teacher"])
    assert run(arch=arch, global_crop_size=64, local_crop_size=32) == 0
    assert read()["epoch"] == 2


def test_last_on_a_convnet_counts_its_cells(capsys):
    options = {
        "arch": "shufflenet_v2_x0_5",
        "global_crop_size": 64,
        "local_crop_size": 32,
        "epochs": 1,
        "pooling": "last",
    }
    assert run(**options, top_k=2) != 0
    assert "4 in a crop of 64 pixels, 1 in a crop of 32 pixels" in capsys.readouterr().err
    assert run(**options, top_k=0.5) == 0
    assert read()["pooling"]["pool"] == "last"


def test_bfloat16_and_batch_norm_in_the_head():
    assert run(bf16=True, use_bn_in_head=True, epochs=1) == 0
    assert "module.head.mlp.6.weight" in read()["teacher"]
    assert 1 < log()[0]["train_loss"] < 10


def test_no_local_crops():
    assert run(local_crops_number=0, epochs=1) == 0
    assert "train_loss_local" not in log()[0]


def test_compiled_backbones_keep_their_names(monkeypatch):
    compiled, compile_module = [], torch.nn.Module.compile

    def compile_eagerly(module, dynamic):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    assert run(compile=True, epochs=1) == 0
    assert compiled == ["DinoVisionTransformer"] * 2
    assert "backbone.cls_token" in read()["teacher"]
