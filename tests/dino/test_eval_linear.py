"""The linear classifier: its features against DINO's golden layers, its training by hand, resume, torchrun, errors."""

import json
import math
import shutil
from pathlib import Path

import eval_linear
import frozen_features
import linear_probe
import pytest
import torch
from dino_parts import golden, tiny_vit
from frozen_parts import COLOURS, MODEL, results, run_two, write_colours, write_run
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from last_vit.dense import attach_pool
from last_vit.pooling import last_pool


@pytest.fixture(scope="module")
def vit():
    model = tiny_vit().eval()
    model.load_state_dict(golden("dino_vit_state"))
    return model


@pytest.mark.parametrize("name", ["native", "rect", "small"])
def test_features_are_dinos(vit, name):
    """Golden normed outputs of the last two blocks: their class tokens, oldest first; with one block, interleaved."""
    vectors = golden("dino_vit")
    images, layers = vectors[f"{name}_in"], [vectors[f"{name}_intermediate{i}"] for i in (0, 1)]
    with torch.no_grad():
        found = frozen_features.layer_reader(vit, 2, False)(vit, images)
        torch.testing.assert_close(found, torch.cat([each[:, 0] for each in layers], dim=1), atol=1e-5, rtol=0)
        found = frozen_features.layer_reader(vit, 1, True)(vit, images)
        mean = layers[1][:, 1:].mean(dim=1)
        torch.testing.assert_close(found[:, 0::2], layers[1][:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[:, 1::2], mean, atol=1e-5, rtol=0)
        found = frozen_features.layer_reader(vit, 2, True)(vit, images)
        assert found.shape == (len(images), 3 * 48)
        torch.testing.assert_close(found[:, 96:], mean, atol=1e-5, rtol=0)


def test_features_of_last_and_mean_pool_each_blocks_patches():
    vectors = golden("dino_vit")
    layers = [vectors[f"native_intermediate{i}"][:, 1:] for i in (0, 1)]
    for kind, pool in (("last", lambda tokens: last_pool(tokens, 0.25)), ("mean", lambda tokens: tokens.mean(dim=1))):
        model = tiny_vit().eval()
        model.load_state_dict(golden("dino_vit_state"))
        attach_pool(model, kind, 0.25 if kind == "last" else None)
        with torch.no_grad():
            found = frozen_features.layer_reader(model, 2, False)(model, vectors["native_in"])
            assert torch.allclose(found[:, 48:], model(vectors["native_in"]), atol=1e-5)  # the last is the model's own
        torch.testing.assert_close(found, torch.cat([pool(tokens) for tokens in layers], dim=1), atol=1e-4, rtol=0)


def test_features_of_a_convnet_are_its_token():
    model = resnet18(num_classes=2).eval()
    model.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(frozen_features.layer_reader(model, 4, False)(model, images), model(images))
    with pytest.raises(ValueError, match="is for ViTs"):
        frozen_features.layer_reader(model, 4, True)


def test_one_epoch_is_plain_sgd(vit):
    """Three steps against autograd and momentum written out."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"image": torch.randn(5, 3, 32, 32, generator=generator), "label": torch.randint(4, (5,), generator=generator)}
        for _ in range(3)
    ]
    read = frozen_features.layer_reader(vit, 2, False)
    probe = linear_probe.LinearProbe(96, 4)
    weight, bias = probe.linear.weight.detach().clone(), probe.linear.bias.detach().clone()
    assert weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not bias.any()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    loss = linear_probe.train_epoch(vit, read, probe, linear_probe.build_optimizer(probe), iter(batches), 3, lr=0.5)
    velocity, losses = [torch.zeros_like(weight), torch.zeros_like(bias)], []
    for batch in batches:
        with torch.no_grad():
            features = read(vit, batch["image"])
        weight.requires_grad_(), bias.requires_grad_()
        value = F.cross_entropy(features @ weight.T + bias, batch["label"])
        gradients = torch.autograd.grad(value, (weight, bias))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weight, bias = ((p - 0.5 * v).detach() for p, v in zip((weight, bias), velocity, strict=True))
        losses.append(value.item())
    torch.testing.assert_close(probe.linear.weight.detach(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probe.linear.bias.detach(), bias, atol=1e-6, rtol=1e-5)
    assert loss == pytest.approx(sum(losses) / 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


def test_learning_rate_is_torchs_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.001 * 512 / 256)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0)
    for epoch in range(10):
        assert linear_probe.learning_rate(0.001, 512, epoch, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("colours"), train=6, val=3)


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "checkpoint.pth")

    def call(*flags, weights="checkpoint.pth", data=written, output="run", epochs=3):
        arguments = [*MODEL, "--pretrained_weights", str(weights), "--data_path", str(data), "--num_labels", "3"]
        more = ["--batch_size_per_gpu", "6", "--lr", "0.5", "--epochs", str(epochs), "--output_dir", output]
        eval_linear.main([*arguments, *more, "--num_workers", "0", "--device", "cpu", *flags])
        return results()[f"linear_{Path(weights).stem}"]

    return call


def probe_file(folder="run"):
    return torch.load(Path(folder) / "checkpoint.pth.tar", weights_only=True)


def log(folder="run"):
    return [json.loads(line) for line in (Path(folder) / "log.txt").read_text().splitlines()]


def test_a_run_learns_colours(run, written):
    record = run("--row", "tiny", epochs=6)
    assert record["metrics"]["acc1"] > 60  # of 3 classes
    assert record["metrics"]["best_acc1"] >= record["metrics"]["acc1"]
    assert record["metrics"]["acc5"] == 100
    assert (record["n_images"], record["table"], record["row"]) == (9, "linear", "tiny")
    assert record["dataset"] == f"{written.name} val, 32 px"
    assert record["config"]["n_last_blocks"] == 4
    content = probe_file()
    assert list(content["state_dict"]) == ["module.linear.weight", "module.linear.bias"]  # DINO's names
    assert content["state_dict"]["module.linear.weight"].shape == (3, 4 * 192)
    assert (content["epoch"], content["best_acc"]) == (6, pytest.approx(record["metrics"]["best_acc1"], abs=1e-3))
    assert [line["epoch"] for line in log()] == list(range(6))
    assert log()[0]["train_lr"] == pytest.approx(0.5 * 6 / 256)
    assert log()[-1]["train_loss"] < log()[0]["train_loss"]


def test_val_freq_and_evaluate(run):
    trained = run("--val_freq", "2", epochs=4)
    assert [line["epoch"] for line in log() if "test_acc1" in line] == [1, 3]
    shutil.rmtree("results")
    before = Path("run/checkpoint.pth.tar").read_bytes()
    again = run("--evaluate", "--lr", "0.1", epochs=9)
    assert again["metrics"] == trained["metrics"]
    assert again["config"] == trained["config"]  # that of the training, whatever the flags say now
    assert Path("run/checkpoint.pth.tar").read_bytes() == before
    assert run(epochs=4)["metrics"] == trained["metrics"]  # a finished run is validated, not trained
    assert Path("run/checkpoint.pth.tar").read_bytes() == before


def test_the_best_epoch_is_kept_beside_the_last(run, monkeypatch):
    found = iter([{"acc1": 50.0, "acc5": 90.0}, {"acc1": 80.0, "acc5": 95.0}, {"acc1": 70.0, "acc5": 92.0}])
    monkeypatch.setattr(linear_probe, "validate", lambda *arguments: next(found))
    assert run(epochs=3)["metrics"] == {"acc1": 70.0, "acc5": 92.0, "best_acc1": 80.0}
    assert probe_file()["best_acc"] == 80.0


def test_the_last_epoch_is_always_validated(run):
    run("--val_freq", "5", epochs=3)
    assert [line["epoch"] for line in log() if "test_acc1" in line] == [2]


def test_validation_features_are_computed_once(run, monkeypatch):
    calls = []
    extract = frozen_features.extract_features
    monkeypatch.setattr(frozen_features, "extract_features", lambda *a: calls.append(a) or extract(*a))
    run(epochs=3)
    assert len(calls) == 1


def test_killed_and_resumed_is_bit_identical(run, monkeypatch):
    run(output="whole", epochs=4)
    save, count = linear_probe.save_probe, 0

    def save_twice_then_die(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(linear_probe, "save_probe", save_twice_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(output="killed", epochs=4)
    assert probe_file("killed")["epoch"] == 2
    monkeypatch.setattr(linear_probe, "save_probe", save)
    run(output="killed", epochs=4)
    whole, resumed = probe_file("whole"), probe_file("killed")
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name])
    assert log("whole") == log("killed")
    assert whole["best_acc"] == resumed["best_acc"]


def test_dinos_own_classifier_is_read(run):
    """Released linear weights: no more than a state dict, in DDP's names."""
    run(epochs=1)
    ours = results()["linear_checkpoint"]["metrics"]
    Path("released").mkdir()
    torch.save({"state_dict": probe_file()["state_dict"]}, "released/checkpoint.pth.tar")
    found = run("--evaluate", output="released")
    assert found["metrics"]["acc1"] == ours["acc1"]
    assert [found["config"][name] for name in ("epochs", "lr", "batch_size")] == [None] * 3


def test_a_run_does_not_go_on_under_other_flags(run, monkeypatch, capsys):
    save = linear_probe.save_probe

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(linear_probe, "save_probe", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(epochs=4)
    monkeypatch.setattr(linear_probe, "save_probe", save)
    for flags, epochs, message in (((), 5, "epochs 4 there, 5 here"), (("--lr", "0.1"), 4, "lr 0.5 there, 0.1 here")):
        with pytest.raises(SystemExit):
            run(*flags, epochs=epochs)
        assert message in capsys.readouterr().err


def test_two_processes_equal_one_with_the_same_global_batch(run, written):
    alone = run(epochs=2)
    run_two(
        "eval_linear.py", *MODEL, "--pretrained_weights", "checkpoint.pth", "--data_path", str(written),
        "--num_labels", "3", "--batch_size_per_gpu", "3", "--lr", "0.5", "--epochs", "2", "--output_dir", "two",
        "--output", "two",
    )  # fmt: skip
    two = results()["two"]
    assert two["metrics"] == alone["metrics"]
    assert (two["num_processes"], two["config"]["batch_size"]) == (2, 6)
    for name, tensor in probe_file()["state_dict"].items():
        torch.testing.assert_close(probe_file("two")["state_dict"][name], tensor, atol=1e-5, rtol=0)
    for one, other in zip(log(), log("two"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--n_last_blocks", "2"], "n_last_blocks 4 there, 2 here"),
        (["--pooling", "mean"], "pooling"),
        (["--resize", "40"], "input_resize 37 there, 40 here"),
        (["--checkpoint_key", "student"], "checkpoint_key teacher there, student here"),
    ],
)
def test_a_checkpoint_of_other_features_is_refused(run, capsys, flags, match):
    run(epochs=1)
    with pytest.raises(SystemExit) as stop:
        run(*flags, epochs=2)
    assert stop.value.code == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "more", "match"),
    [
        ([], {"data": "nowhere"}, "nowhere does not exist"),
        ([], {"weights": "missing.pth"}, "missing.pth"),
        (["--num_labels", "1000"], {}, "--num_labels is 1000, but"),
        (["--num_labels", "2"], {}, "give --num_labels 3"),
        (["--n_last_blocks", "5"], {}, "--n_last_blocks 5 is more than the 4 blocks"),
        (["--lr", "0"], {}, "--lr must be positive"),
        (["--lr", "1e38"], {}, "loss is"),
        (["--evaluate"], {"output": "empty"}, "no checkpoint file at empty/checkpoint.pth.tar"),
        (["--arch", "resnet18", "--avgpool_patchtokens", "true"], {"weights": "random"}, "is for ViTs"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, flags, more, match):
    with pytest.raises(SystemExit) as stop:
        run(*flags, **more)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.splitlines()[-1].startswith("eval_linear.py: error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {"module.fc.weight": torch.zeros(3, 768)}}])
def test_a_file_that_is_no_classifier(run, capsys, content):
    Path("run").mkdir()
    torch.save(content, "run/checkpoint.pth.tar")
    with pytest.raises(SystemExit):
        run()
    assert "run/checkpoint.pth.tar" in capsys.readouterr().err


def test_a_diverged_run_keeps_its_last_checkpoint(run):
    run(epochs=2)
    before = Path("run/checkpoint.pth.tar").read_bytes()
    with pytest.raises(SystemExit):
        run("--lr", "1e38", epochs=5)
    assert Path("run/checkpoint.pth.tar").read_bytes() == before
    assert math.isfinite(probe_file()["state_dict"]["module.linear.weight"].sum())
    assert len(COLOURS) == probe_file()["state_dict"]["module.linear.weight"].shape[0]
