"""cls_pretrain end to end on synthetic data: training, evaluation, resuming after a kill, and every fault."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cls_evaluator import check_classes
from lazy_parts import ENVIRONMENT, REPO, LazyTrain, losses, record

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.synthetic import SyntheticObjects, write_imagenet

DEBUG = REPO / "cls_pretrain" / "configs" / "debug_synthetic.py"
CONF = REPO / "cls_pretrain" / "conf.py"
TRAINER = LazyTrain("cls_pretrain")
run = partial(TRAINER.run, config=DEBUG)
OPTIONS = ("train.max_iter=12", "train.log_period=1", "train.eval_period=6", "train.save_period=4")
SHORT = ("train.max_iter=2", "train.log_period=1", "train.eval_period=0", "dataloader.test.dataset.num_images=8")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A folder of its own, and no GPU for processes that are started."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of one uninterrupted run of 12 iterations, its losses logged every iteration."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(f"train.output_dir={folder}", *OPTIONS) == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """That run, to be continued, in `run`."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_training_writes_what_detectron2_users_expect(trained):
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_ce", "lr", "time", "data_time", "images_per_second"} <= set(rows[8])
    assert {"acc1", "acc5", "point_in_box", "point_in_box_random", "point_in_box_center"} <= set(rows[5])
    assert list(trained.glob("events.out.tfevents*"))
    assert (trained / "config.yaml").exists()
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    kept = record(trained / "train_run.json")
    assert kept["metrics"]["acc1"] == pytest.approx(rows[-1]["acc1"], abs=1e-4)
    assert kept["config"]["train_seconds"] > 0
    log = (trained / "log.txt").read_text()
    assert "eta" in log
    assert "After 6 iterations: acc1" in log


def test_checkpoint_has_the_release_layout(trained):
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    assert set(checkpoint) == {"model", "trainer", "iteration", "pooling"}
    assert all(name.startswith("model.") for name in checkpoint["model"])
    assert "model.class_token" in checkpoint["model"]
    assert checkpoint["iteration"] == 11
    assert checkpoint["pooling"] == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}


def test_the_best_is_kept_beside_the_last_over_a_resume(copied):
    rows = [json.loads(line) for line in (copied / "metrics.json").read_text().splitlines()]
    found = {row["iteration"]: row["acc1"] for row in rows if "acc1" in row}
    best, path = torch.load(copied / "model_best.pth"), copied / "best_run.json"
    assert set(best) == {"model", "iteration", "pooling"}
    assert record(path)["metrics"]["acc1"] == pytest.approx(max(found.values()), abs=1e-4)
    assert max(found, key=found.get) - best["iteration"] in (0, 1)  # the last evaluation is logged one later
    assert torch.load(copied / "model_latest.pth")["iteration"] == 7
    for value, is_kept in ((101.0, True), (-1.0, False)):
        path.write_text(json.dumps({"metrics": {"acc1": value}}))
        words = [f"train.max_iter={13 + (not is_kept)}", *OPTIONS[1:]]
        assert run("--resume", "train.output_dir=run", *words) == 0
        assert (record(path)["metrics"]["acc1"] == value) == is_kept
    assert torch.load(copied / "model_best.pth")["iteration"] == 13


def test_sigkill_then_resume_continues_bit_identically(trained, tmp_path):
    words = [sys.executable, str(TRAINER.script), "--config-file", str(DEBUG), "train.output_dir=run", *OPTIONS]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pointer, deadline = tmp_path / "run" / "last_checkpoint", time.monotonic() + 600
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pointer.exists(), "no checkpoint was written before the deadline"
    if pointer.read_text() == "model_final.pth":  # it outran the kill: take it back to its first checkpoint
        pointer.write_text("model_0000004.pth")
    assert run("--resume", "train.output_dir=run", *OPTIONS) == 0
    assert "Resuming from" in (tmp_path / "run" / "log.txt").read_text()
    assert losses("run") == losses(trained)
    assert set(losses("run")) == set(range(12))
    final, again = (torch.load(folder / "model_final.pth") for folder in (trained, tmp_path / "run"))
    assert all(torch.equal(final["model"][name], again["model"][name]) for name in final["model"])


def test_sigterm_saves_at_the_step_border_in_all_processes():
    """Of two that detectron2 started; Slurm's pre-emption sends it to whom it finds, the parent here."""
    words = [sys.executable, str(TRAINER.script), "--config-file", str(DEBUG), "--num-gpus", "2"]
    words += ["train.output_dir=run", "train.max_iter=5000", "train.log_period=1", "train.eval_period=0"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log, deadline = Path("run/metrics.json"), time.monotonic() + 600
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Path("run/run.lock").exists()
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 143, error
    (line,) = re.findall(r"lazy_train.py: .*", error)
    found = re.match(
        r"lazy_train.py: stopped after (\d+) iterations, saved in run/(model_\d+.pth); go on with: python "
        r"\S+lazy_train.py --resume --config-file .*train.eval_period=0 \(process 0\)",
        line,
    )
    assert found, line
    assert Path("run/last_checkpoint").read_text() == found[2] == f"model_{int(found[1]) - 1:07d}.pth"
    assert "Traceback" not in error
    assert not Path("run/run.lock").exists()


def test_two_processes_train_and_evaluate_like_one(tmp_path):
    """Of half the batch each; 59 test images in batches of 7, every one once."""
    options = ("train.max_iter=3", "train.log_period=1", "train.eval_period=0", "dataloader.test.batch_size=7")
    options = (*options, "dataloader.test.dataset.num_images=59")
    for processes, batch_size in ((1, 16), (2, 8)):
        folder = f"train.output_dir=n{processes}"
        assert run("--num-gpus", processes, folder, *options, f"dataloader.train.batch_size={batch_size}") == 0
    assert losses("n1") == pytest.approx(losses("n2"), abs=1e-5)
    assert run("--eval-only", "train.init_checkpoint=n2/model_final.pth", "train.output_dir=n2", *options) == 0
    two, one = record("n2/train_n2.json"), record("n2/eval_n2.json")
    assert (two["num_processes"], two["n_images"], one["n_images"]) == (2, 59, 59)
    assert one["metrics"] == two["metrics"]
    assert one["config"]["pooling"]["pool"] == "last"


def test_batch_norm_statistics_are_those_that_are_saved(tmp_path):
    """Two processes with BatchNorm: the evaluation in training equals the saved checkpoint's."""
    config = tmp_path / "resnet.py"
    config.write_text(
        f"""
from detectron2.config import LazyCall as L, LazyConfig
from torchvision.models import resnet18
base = LazyConfig.load({str(DEBUG)!r})
model, dataloader, evaluation = base.model, base.dataloader, base.evaluation
lr_multiplier, optimizer, train = base.lr_multiplier, base.optimizer, base.train
model.model = L(resnet18)(num_classes=8)
model.pool = "host"
train.update(output_dir="run", max_iter=4, eval_period=0)
"""
    )
    assert run("--num-gpus", 2, config=config) == 0
    assert run("--eval-only", "train.init_checkpoint=run/model_final.pth", config=config) == 0
    assert record("run/train_run.json")["metrics"] == record("run/eval_run.json")["metrics"]


@pytest.mark.parametrize(
    "switches",
    [
        ["train.accumulation_steps=4"],
        ["train.bf16=True", "optimizer.fused=True", "train.clip_grad_norm=1e-6"],
        ["train.compile=True", "dataloader.train.batch_size=8"],
    ],
)
def test_switches_train(switches, trained, monkeypatch):
    compiled, compile_module = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda model: compiled.append(compile_module(model, backend="eager"))
    )
    assert run("train.output_dir=run", *SHORT, *switches) == 0
    keys = [torch.load(Path(folder) / "model_final.pth")["model"].keys() for folder in ("run", trained)]
    assert keys[0] == keys[1]
    assert len(compiled) == ("compile" in switches[0])
    if "accumulation" in switches[0]:  # the same batch in four parts is the same step
        assert losses("run")[0] == pytest.approx(losses(trained)[0], abs=1e-5)
    if "bf16" in switches[0]:
        assert losses("run")[1] == pytest.approx(losses("run")[0], abs=0.1)
        assert losses("run")[1] != losses(trained)[1]


def test_row_puts_the_record_into_results(trained):
    """Under a name that another run of the same folder name does not share."""
    options = [f"train.init_checkpoint={trained}/model_final.pth", *SHORT]
    for folder, top_k in (("a/run", 1), ("b/run", 3)):
        words = (f"train.output_dir={folder}", f"model.top_k={top_k}")
        assert run("--eval-only", "--row", "LaSt", *options, *words) == 0
    found = [record(path) for path in Path("results").iterdir()]
    assert sorted(each["config"]["pooling"]["top_k"] for each in found) == [1, 3]
    assert {(each["table"], each["row"], each["config"]["trained_with"]["top_k"]) for each in found} == {
        ("cls_pretrain", "LaSt", 1)
    }
    assert not list(Path("a/run").glob("eval_*.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.topk=7"], "unknown override key 'model.topk'.*did you mean model.top_k"),
        (["train.max_iters=7"], "did you mean train.max_iter"),
        (["model.pool=gem"], "cls, mean, max, attention, last"),
        (["model.top_k=17"], r"top_k must be in \[1, 16\]"),
        (["--num-gpus", "0"], "--num-gpus"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--eval-only"], "needs train.init_checkpoint"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
        (["--num-gpus", "2", "train.init_checkpoint=nowhere.pth"], r"nowhere.pth.*\(process [01]\)"),
        (["dataloader.train.batch_size=many"], "dataloader.train.batch_size must be of type int"),
        (["train.output_dir=nan"], "train.output_dir must be of type str"),
        (["train.accumulation_steps=0"], "accumulation_steps must be at least 1"),
        (["train.fused_pool=True"], "the fused pool needs an NVIDIA GPU"),
        (["train.log_period=0"], "log_period must be at least 1"),
        (["train.eval_period=-1"], "eval_period must be 0"),
        (["train.save_period=-1"], "save_period must be 0"),
        (["train.gradient_compression=fp8"], "must be one of none, fp16, bf16, got 'fp8'"),
        (["model.model.hidden_dim=33"], "model cannot be built"),
        (["model.model.image_size=36"], "cannot be built .AssertionError.: Input shape indivisible by patch size"),
        (["model.model.num_classes=9"], "8 classes, the model 9"),
    ],
)
def test_user_errors_are_one_message(words, message, capfd):
    flags = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    assert run(*flags, "train.output_dir=run", *settings) == 2
    error = capfd.readouterr().err
    assert re.search(message, error), error
    assert any(line.startswith("lazy_train.py: error:") for line in error.splitlines())
    assert "Traceback" not in error


def test_missing_config(capsys):
    assert run(config="no.py") == 2
    assert "no config file no.py; the recipes are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--resume"),
        (["--resume", "model.pool=mean"], "was trained with"),
        (["--resume", "train.max_iter=3"], "has done 12 iterations"),
        (["--eval-only", "model.pool=mean"], "give model.pool=last"),
        (["--eval-only", "model.model.num_classes=5"], "8 classes, the model 5"),
    ],
)
def test_runs_that_do_not_belong_together(words, message, trained, capsys):
    flags, settings = ([word for word in words if ("=" in word) is kind] for kind in (False, True))
    settings += [f"train.init_checkpoint={trained}/model_final.pth"] * ("--eval-only" in words)
    folder = "run" if "--eval-only" in words else trained
    assert run(*flags, f"train.output_dir={folder}", *settings) == 2
    assert message in capsys.readouterr().err


def test_another_trainers_file_is_no_run_to_resume(copied, capsys):
    content = torch.load(copied / "model_final.pth")
    del content["pooling"]
    torch.save(content, copied / "model_final.pth")
    assert run("--resume", "train.output_dir=run") == 2
    assert re.search(r"does not record its pooling.*train.init_checkpoint", capsys.readouterr().err)


def test_the_release_commands_run_as_its_readmes_write_them(capsys):
    """conf.py on a folder in ImageNet's layout, shrunk to one narrow layer; the arguments are the two READMEs'."""
    for split, num_images in (("train", 12), ("val", 6)):
        write_imagenet(SyntheticObjects(num_images, split, image_size=64, num_classes=3), Path("imagenet"))
    small = ["model.model.num_layers=1", "model.model.hidden_dim=24", "model.model.mlp_dim=24", "train.max_iter=2"]
    small += ["model.model.num_classes=3", "train.output_dir=run"]
    small += [f"dataloader.{split}.{one}" for split in ("train", "test") for one in ("batch_size=4", "num_workers=0")]
    assert run("--num-gpus", 1, "dataloader.train.dataset.root=imagenet", *small, config=CONF) == 0
    test = ["--num-gpus", 1, "--eval-only", "train.init_checkpoint=run/model_final.pth", *small]
    test.append("dataloader.test.dataset.root=imagenet/val")
    capsys.readouterr()
    assert run(*test, "dataloader.test.dataset.boxes=True", config=CONF) == 0
    assert "point_in_box_random" in capsys.readouterr().out
    assert run(*test, config=CONF) == 0
    shown = capsys.readouterr().out
    assert "acc5" in shown
    assert "point_in_box " not in shown


def test_a_subset_of_the_models_classes_gets_its_numbers(tmp_path):
    write_imagenet(SyntheticObjects(8, "val", image_size=32, num_classes=4), tmp_path)
    shutil.rmtree(tmp_path / "val" / "n00000001")
    loader = SimpleNamespace(dataset=SimpleNamespace(dataset=ImageNetDataset(tmp_path, "val")))
    check_classes(4, loader)
    assert sorted(set(loader.dataset.dataset.labels.tolist())) == [0, 2, 3]
    with pytest.raises(ValueError, match="has 3 classes, the classifier 5"):
        check_classes(5, loader)
