"""The linear classifier: its features against DINO's golden layers, its training by hand, resume, torchrun, errors."""

import json
import math
from pathlib import Path

import eval_linear
import frozen_features
import linear_probe
import pytest
import torch
from dino_parts import golden, tiny_vit
from frozen_features import layer_reader
from frozen_parts import only_record
from record_parts import read_records
from script_parts import run_two
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from last_vit.dense import attach_pool
from last_vit.pooling import last_pool


@pytest.fixture
def vit():
    model = tiny_vit().eval()
    model.load_state_dict(golden("dino_vit_state"))
    return model


@pytest.mark.parametrize("name", ["native", "rect", "small"])
def test_features_are_dinos(vit, name):
    """Golden normed outputs of the last two blocks: their class tokens, oldest first; with one block, interleaved."""
    vectors = golden("dino_vit")
    images, layers = vectors[f"{name}_in"], [vectors[f"{name}_intermediate{i}"] for i in (0, 1)]
    tokens, mean = [each[:, 0] for each in layers], layers[1][:, 1:].mean(dim=1)
    with torch.no_grad():
        two, one, three = (layer_reader(vit, *asked)(vit, images) for asked in ((2, False), (1, True), (2, True)))
    torch.testing.assert_close(two, torch.cat(tokens, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(one, torch.stack((tokens[1], mean), dim=2).flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(three, torch.cat((*tokens, mean), dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "top_k"), [("last", 0.25), ("mean", None)])
def test_features_of_last_and_mean_pool_each_blocks_patches(vit, kind, top_k):
    vectors = golden("dino_vit")
    layers = [vectors[f"native_intermediate{i}"][:, 1:] for i in (0, 1)]
    expected = [last_pool(tokens, top_k) if top_k else tokens.mean(dim=1) for tokens in layers]
    attach_pool(vit, kind, top_k)
    with torch.no_grad():
        found = layer_reader(vit, 2, False)(vit, vectors["native_in"])
        assert torch.allclose(found[:, 48:], vit(vectors["native_in"]), atol=1e-5)  # the last is the model's own
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-4, rtol=0)


def test_features_of_a_convnet_are_its_token():
    model, images = resnet18(num_classes=2).eval(), torch.rand(2, 3, 64, 64)
    model.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(layer_reader(model, 4, False)(model, images), model(images))


def test_one_epoch_is_plain_sgd(vit):
    """Three steps against autograd and momentum written out; the backbone stays as it is."""
    torch.manual_seed(0)
    batches = [{"image": torch.randn(5, 3, 32, 32), "label": torch.randint(4, (5,))} for _ in range(3)]
    read, probe = layer_reader(vit, 2, False), linear_probe.build_probe(96, 4)
    weight, bias = (parameter.detach().clone() for parameter in probe.parameters())
    assert weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not bias.any()
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.0, momentum=0.9)
    loss = linear_probe.train_epoch(vit, read, probe, optimizer, iter(batches), 3, lr=0.5)
    velocity, losses = [torch.zeros_like(weight), torch.zeros_like(bias)], []
    for batch in batches:
        with torch.no_grad():
            features = read(vit, batch["image"])
        value = F.cross_entropy(features @ weight.requires_grad_().T + bias.requires_grad_(), batch["label"])
        gradients = torch.autograd.grad(value, (weight, bias))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weight, bias = ((p - 0.5 * v).detach() for p, v in zip((weight, bias), velocity, strict=True))
        losses.append(value.item())
    torch.testing.assert_close(list(probe.parameters()), [weight, bias], atol=1e-6, rtol=1e-5)
    assert loss == pytest.approx(sum(losses) / 3)
    for name, tensor in golden("dino_vit_state").items():
        assert torch.equal(vit.state_dict()[name], tensor)


def test_learning_rate_is_torchs_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.001 * 512 / 256)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0)
    for epoch in range(10):
        assert linear_probe.learning_rate(0.001, 512, epoch, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.fixture
def linear(flags):
    """The command line, of which any flag may be given again at its end."""
    more = ["--batch_size_per_gpu", "6", "--lr", "0.5", "--epochs", "2", "--output_dir", "run"]
    return [*flags, "--num_labels", "3", *more]


@pytest.fixture
def run(linear):
    return lambda *more, into="output": only_record(eval_linear.main, *linear, *more, into=into)


def probe_file(folder="run"):
    return torch.load(Path(folder) / "checkpoint.pth.tar", weights_only=True)


def log(folder="run"):
    return [json.loads(line) for line in (Path(folder) / "log.txt").read_text().splitlines()]


def test_a_run_learns_colours(run, colours, monkeypatch):
    calls, extract = [], frozen_features.extract_features
    monkeypatch.setattr(frozen_features, "extract_features", lambda *a: calls.append(a) or extract(*a))
    record = run("--row", "tiny", "--epochs", "6", "--val_freq", "4", into="results")
    assert len(calls) == 1  # features of val are computed once
    assert record["metrics"]["acc1"] > 60  # of 3 classes
    assert record["metrics"]["acc5"] == 100
    assert (record["n_images"], record["table"], record["row"]) == (9, "linear", "tiny")
    assert (record["dataset"], record["config"]["n_last_blocks"]) == (f"{colours.name} val, 32 px", 4)
    content = probe_file()
    assert list(content["state_dict"]) == ["module.linear.weight", "module.linear.bias"]  # DINO's names
    assert content["state_dict"]["module.linear.weight"].shape == (3, 4 * 192)
    assert (content["epoch"], content["best_acc"]) == (6, pytest.approx(record["metrics"]["best_acc1"], abs=1e-3))
    assert [line["epoch"] for line in log()] == list(range(6))
    assert [line["epoch"] for line in log() if "test_acc1" in line] == [3, 5]  # the last always
    assert log()[0]["train_lr"] == pytest.approx(0.5 * 6 / 256)
    assert log()[-1]["train_loss"] < log()[0]["train_loss"]


def test_evaluate_reads_our_checkpoints_and_dinos(run, monkeypatch):
    accuracies, validate = iter((50.0, 80.0, 70.0)), linear_probe.validate
    monkeypatch.setattr(linear_probe, "validate", lambda *a: validate(*a) | {"acc1": next(accuracies)})
    trained = run("--epochs", "3")
    assert (trained["metrics"]["acc1"], trained["metrics"]["best_acc1"], probe_file()["best_acc"]) == (70.0, 80.0, 80.0)
    monkeypatch.setattr(linear_probe, "validate", validate)
    before = Path("run/checkpoint.pth.tar").read_bytes()
    again = run("--evaluate", "--lr", "0.1", "--epochs", "9")
    assert again["config"] == trained["config"]  # that of the training, whatever the flags say now
    assert run("--epochs", "3")["metrics"] == again["metrics"]  # a finished run is validated, not trained
    assert Path("run/checkpoint.pth.tar").read_bytes() == before
    # DINO's released linear weights: no more than a state dict, in DDP's names
    Path("released").mkdir()
    torch.save({"state_dict": probe_file()["state_dict"]}, "released/checkpoint.pth.tar")
    found = run("--evaluate", "--output_dir", "released")
    assert found["metrics"]["acc1"] == again["metrics"]["acc1"]
    assert [found["config"][name] for name in ("epochs", "lr", "batch_size")] == [None] * 3


def test_killed_and_resumed_is_bit_identical(run, linear, monkeypatch, capsys, refused):
    run("--output_dir", "whole", "--epochs", "3")
    save = linear_probe.save_probe

    def save_and_die(*given):
        save(*given)
        raise KeyboardInterrupt

    killed = ["--output_dir", "killed", "--epochs"]
    monkeypatch.setattr(linear_probe, "save_probe", save_and_die)
    with pytest.raises(SystemExit, match="130"):
        run(*killed, "3")
    assert capsys.readouterr().err.splitlines()[-1] == "eval_linear.py: stopped by Ctrl-C"
    monkeypatch.setattr(linear_probe, "save_probe", save)
    assert probe_file("killed")["epoch"] == 1
    for more, message in ((["5"], "epochs 3 there, 5 here"), (["3", "--lr", "0.1"], "lr 0.5 there, 0.1 here")):
        assert message in refused(eval_linear.main, *linear, *killed, *more)
    run(*killed, "3")
    whole, resumed = probe_file("whole"), probe_file("killed")
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], atol=0, rtol=0)
    assert (log("whole"), whole["best_acc"]) == (log("killed"), resumed["best_acc"])


def test_two_processes_equal_one_with_the_same_global_batch(run, linear):
    alone = run()
    run_two("dino/eval_linear.py", *linear, "--batch_size_per_gpu", "3", "--output_dir", "two", "--output", "two")
    (two,) = [record for record in read_records("output") if record["name"].startswith("two")]
    assert two["metrics"] == alone["metrics"]
    assert (two["num_processes"], two["config"]["batch_size"]) == (2, 6)
    torch.testing.assert_close(probe_file("two")["state_dict"], probe_file()["state_dict"], atol=1e-5, rtol=0)
    for one, other in zip(log(), log("two"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_a_checkpoint_of_something_else_is_refused_and_kept(run, linear, refused):
    run("--epochs", "1")
    path = Path("run/checkpoint.pth.tar")
    before = path.read_bytes()
    for flags, match in (
        (["--n_last_blocks", "2"], "n_last_blocks 4 there, 2 here"),
        (["--pooling", "mean"], "pooling"),
        (["--resize", "40"], "input_resize 37 there, 40 here"),
        (["--checkpoint_key", "student"], "checkpoint_key teacher there, student here"),
    ):
        assert match in refused(eval_linear.main, *linear, *flags)
        assert path.read_bytes() == before
    for content in ({"epoch": 1}, {"state_dict": {"module.fc.weight": torch.zeros(3, 768)}}):
        torch.save(content, path)
        assert "run/checkpoint.pth.tar" in refused(eval_linear.main, *linear)


def test_a_diverged_run_keeps_its_last_checkpoint(linear, monkeypatch, refused):
    monkeypatch.setattr(linear_probe, "learning_rate", lambda base, size, epoch, epochs: 0.1 if epoch < 2 else 1e38)
    assert " of the epoch; use a smaller --lr" in refused(eval_linear.main, *linear, "--epochs", "5")
    assert probe_file()["epoch"] == 2
    assert math.isfinite(probe_file()["state_dict"]["module.linear.weight"].sum())


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--num_labels", "1000"], "--num_labels is 1000, but"),
        (["--num_labels", "2"], "give --num_labels 3"),
        (["--n_last_blocks", "5"], "--n_last_blocks 5 is more than the 4 blocks"),
        (["--evaluate", "--output_dir", "empty"], "no checkpoint file at empty/checkpoint.pth.tar"),
        (["--arch", "resnet18", "--avgpool_patchtokens", "true", "--pretrained_weights", "random"], "is for ViTs"),
    ],
)
def test_one_line_for_every_mistake(linear, refused, more, match):
    error = refused(eval_linear.main, *linear, *more)
    assert "eval_linear.py: error: " in error
    assert match in error
