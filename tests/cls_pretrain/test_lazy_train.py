"""cls_pretrain end to end on synthetic data: training, evaluation, resuming after a kill, and every fault."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from last_vit.data.synthetic import SyntheticObjects, write_imagenet

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "cls_pretrain" / "lazy_train.py"
DEBUG = REPO / "cls_pretrain" / "configs" / "debug_synthetic.py"
# bit-identity is promised on a CPU, and two processes need no second GPU here
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


def command(*args, config=DEBUG):
    return [sys.executable, str(SCRIPT), "--config-file", str(config), *map(str, args)]


def run(*args, cwd, config=DEBUG):
    return subprocess.run(
        command(*args, config=config), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def losses(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run of 12 iterations, its losses logged every iteration."""
    cwd = tmp_path_factory.mktemp("trained")
    done = run("train.output_dir=run", "train.max_iter=12", "train.log_period=1", "train.eval_period=6", cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    return cwd / "run", done.stdout + done.stderr


def test_training_writes_what_detectron2_users_expect(trained):
    folder, log = trained
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_ce", "lr", "time", "data_time", "images_per_second"} <= set(rows[8])
    assert {"acc1", "acc5", "point_in_box", "point_in_box_random", "point_in_box_center"} <= set(rows[5])
    assert rows[-1]["acc1"] >= 0
    assert list(folder.glob("events.out.tfevents*"))
    assert (folder / "config.yaml").exists()
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    record = json.loads((folder.parent / "results" / "train_run.json").read_text())
    assert record["metrics"]["acc1"] == pytest.approx(rows[-1]["acc1"], abs=1e-4)
    assert record["config"]["train_seconds"] > 0
    assert "img/s" in log
    assert "eta" in log


def test_checkpoint_has_the_release_layout(trained):
    checkpoint = torch.load(trained[0] / "model_final.pth", weights_only=True)
    assert set(checkpoint) == {"model", "trainer", "iteration", "pooling"}
    assert all(name.startswith("model.") for name in checkpoint["model"])
    assert "model.class_token" in checkpoint["model"]
    assert checkpoint["iteration"] == 11
    assert checkpoint["pooling"] == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}


def test_sigkill_then_resume_continues_bit_identically(trained, tmp_path):
    options = ["train.output_dir=run", "train.max_iter=12", "train.log_period=1", "train.eval_period=6"]
    process = subprocess.Popen(
        command(*options), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    pointer, deadline = tmp_path / "run" / "last_checkpoint", time.monotonic() + 120
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pointer.exists(), "no checkpoint was written before the deadline"
    if pointer.read_text() == "model_final.pth":  # it outran the kill: take it back to its first checkpoint
        pointer.write_text("model_0000004.pth")
    resumed = run("--resume", *options, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming from" in resumed.stdout + resumed.stderr
    expected = losses(trained[0])
    assert set(expected) == set(range(12))
    assert losses(tmp_path / "run") == expected  # the last line of an iteration wins, to the last bit
    final, again = (torch.load(f / "model_final.pth", weights_only=True) for f in (trained[0], tmp_path / "run"))
    assert all(torch.equal(final["model"][name], again["model"][name]) for name in final["model"])


def test_an_earlier_run_is_not_overwritten(trained):
    refused = run(f"train.output_dir={trained[0]}", cwd=trained[0].parent)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr


def test_resume_with_another_pooling_is_refused(trained, tmp_path):
    refused = run("--resume", f"train.output_dir={trained[0]}", "model.pool=mean", cwd=tmp_path)
    assert refused.returncode == 2
    assert "was trained with" in refused.stderr


def test_another_trainers_file_is_no_run_to_resume(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    content = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    del content["pooling"]
    torch.save(content, tmp_path / "run" / "model_final.pth")
    refused = run("--resume", "train.output_dir=run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "does not record its pooling" in refused.stderr
    assert "train.init_checkpoint" in refused.stderr


def test_eval_only_matches_training_and_any_number_of_processes(trained, tmp_path):
    """59 images over 1 and over 2 processes in batches of 7: every image once, so the same record."""
    results = []
    for num_processes in (1, 2):
        cwd = tmp_path / str(num_processes)
        cwd.mkdir()
        options = [f"train.init_checkpoint={trained[0]}/model_final.pth", "dataloader.test.batch_size=7"]
        sized = [*options, "dataloader.test.dataset.num_images=59", "train.output_dir=run"]
        done = run("--eval-only", "--num-gpus", num_processes, *sized, cwd=cwd)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((cwd / "results" / "eval_run.json").read_text()))
    one, two = results
    assert one["n_images"] == two["n_images"] == 59
    assert two["num_processes"] == 2
    assert one["metrics"] == two["metrics"]
    assert one["config"]["pooling"]["pool"] == "last"


def test_two_processes_train_like_one_of_twice_the_batch(tmp_path):
    options = ["train.max_iter=3", "train.log_period=1", "train.eval_period=0", "dataloader.test.dataset.num_images=8"]
    for num_processes, batch_size in ((1, 16), (2, 8)):
        done = run(
            "--num-gpus", num_processes, f"train.output_dir=n{num_processes}", *options,
            f"dataloader.train.batch_size={batch_size}", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "n1"), losses(tmp_path / "n2")
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize(
    "switches",
    [
        ["train.accumulation_steps=4"],
        ["train.bf16=True", "optimizer.fused=True", "train.clip_grad_norm=1.0"],
        pytest.param(
            ["train.compile=True", "dataloader.train.batch_size=8"],
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
        ),
    ],
)
def test_switches_train(switches, trained, tmp_path):
    short = ["train.max_iter=2", "train.log_period=1", "train.eval_period=0", "dataloader.test.dataset.num_images=8"]
    done = run("train.output_dir=run", *short, *switches, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = [torch.load(folder / "model_final.pth")["model"].keys() for folder in (tmp_path / "run", trained[0])]
    assert keys[0] == keys[1]
    if "accumulation" in switches[0]:  # the same batch in four parts is the same step
        assert losses(tmp_path / "run")[0] == pytest.approx(losses(trained[0])[0], abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.topk=7"], "unknown override key 'model.topk'"),
        (["train.max_iters=7"], "did you mean train.max_iter"),
        (["model.pool=gem"], "cls, mean, max, attention, last"),
        (["model.top_k=17"], r"top_k must be in \[1, 16\]"),
        (["--num-gpus", "0"], "--num-gpus"),
        (["--eval-only"], "needs train.init_checkpoint"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
        (["train.init_checkpoint=nowhere.pth", "--num-gpus", "2"], "nowhere.pth"),
        (["dataloader.train.batch_size=many"], "dataloader.train.batch_size must be of type int"),
        (["train.output_dir=nan"], "train.output_dir must be of type str"),
        (["model.model.hidden_dim=33"], "model cannot be built"),
        (["model.model.num_classes=9"], "8 classes, the model 9"),
    ],
)
def test_user_errors_are_one_message(overrides, message, tmp_path, trained):
    flags = [text for text in overrides if not re.match(r"[a-z.]", text) or "=" not in text]
    failed = run(*flags, "train.output_dir=run", *(text for text in overrides if text not in flags), cwd=tmp_path)
    assert failed.returncode == 2
    assert re.search(message, failed.stderr), failed.stderr
    assert any(line.startswith("lazy_train.py: error:") for line in failed.stderr.splitlines())
    assert "Traceback" not in failed.stderr


def test_missing_config_and_wrong_root(tmp_path):
    missing = run(cwd=tmp_path, config=tmp_path / "no.py")
    assert missing.returncode == 2
    assert "no config file" in missing.stderr
    conf = REPO / "cls_pretrain" / "conf.py"
    small = ["model.model.num_layers=1", "model.model.hidden_dim=24", "model.model.mlp_dim=24"]
    wrong = run("dataloader.train.dataset.root=/no/such/imagenet", *small, cwd=tmp_path, config=conf)
    assert wrong.returncode == 2
    assert "/no/such/imagenet" in wrong.stderr


def test_num_classes_that_contradict_the_checkpoint(trained, tmp_path):
    options = [f"train.init_checkpoint={trained[0]}/model_final.pth", "model.model.num_classes=5"]
    failed = run("--eval-only", *options, "train.output_dir=run", cwd=tmp_path)
    assert failed.returncode == 2
    assert "8 classes, the model 5" in failed.stderr


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(trained, tmp_path):
    """A run goes on from iteration 12 with a learning rate that blows the weights up: the next loss is NaN."""
    folder = shutil.copytree(trained[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    options = ["train.max_iter=20", "train.eval_period=0", "optimizer.lr=1e30"]
    failed = run("--resume", "train.output_dir=run", *options, cwd=tmp_path)
    assert failed.returncode == 2
    assert re.search(r"loss_ce is nan at iteration 1[3-5]; nothing of it was saved", failed.stderr), failed.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before


def test_resume_takes_the_configs_learning_rate(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    options = ["train.max_iter=14", "train.eval_period=0", "train.log_period=1", "optimizer.lr=1e-6"]
    done = run("--resume", "train.output_dir=run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert {row["iteration"]: row["lr"] for row in rows if "lr" in row}[12] < 1e-6


def test_resume_beyond_max_iter_is_refused(trained, tmp_path):
    refused = run("--resume", f"train.output_dir={trained[0]}", "train.max_iter=3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "has done 12 iterations" in refused.stderr


def test_evaluation_with_another_pooling_is_refused(trained, tmp_path):
    options = ["train.output_dir=run", f"train.init_checkpoint={trained[0]}/model_final.pth"]
    refused = run("--eval-only", *options, "model.pool=mean", cwd=tmp_path)
    assert refused.returncode == 2
    assert "give model.pool=last" in refused.stderr
    other_k = run("--eval-only", *options, "model.top_k=3", cwd=tmp_path)
    assert other_k.returncode == 0, other_k.stderr
    config = json.loads((tmp_path / "results" / "eval_run.json").read_text())["config"]
    assert (config["pooling"]["top_k"], config["trained_with"]["top_k"]) == (3, 1)


def test_windows_and_registers_train_and_are_never_lost(tmp_path):
    """Both ablations at once; weights are refused by evaluation and by --resume under others."""
    ablation = ["model.pool=cls", "model.num_registers=2", "model.window_layers=[0,1]", "model.window_size=2"]
    short = ["train.max_iter=2", "train.log_period=1", "train.eval_period=0", "dataloader.test.dataset.num_images=8"]
    done = run("train.output_dir=run", *short, *ablation, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = ["train.init_checkpoint=run/model_final.pth", "train.output_dir=again", *short]
    again = run("--eval-only", *trained, *ablation, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / "results" / f"{n}.json").read_text()) for n in ("train_run", "eval_again"))
    assert first["metrics"] == second["metrics"]
    refused = run("--eval-only", *trained, "model.pool=cls", cwd=tmp_path)
    assert refused.returncode == 2
    assert "differ in their register tokens" in refused.stderr
    assert "differ in their window attention" in refused.stderr
    refused = run("--resume", "train.output_dir=run", *short, *ablation, "model.window_size=3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "trained with windows of 2 x 2 patches" in refused.stderr


def test_clipping_changes_the_step(trained, tmp_path):
    options = ["train.max_iter=2", "train.log_period=1", "train.eval_period=0", "train.clip_grad_norm=1e-6"]
    done = run("train.output_dir=run", *options, "dataloader.test.dataset.num_images=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    clipped, plain = losses(tmp_path / "run"), losses(trained[0])
    assert clipped[0] == plain[0]
    assert clipped[1] != plain[1]


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
    done = run("--num-gpus", 2, cwd=tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    done = run("--eval-only", "train.init_checkpoint=run/model_final.pth", cwd=tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    during, after = (
        json.loads((tmp_path / "results" / f"{kind}_run.json").read_text())["metrics"] for kind in ("train", "eval")
    )
    assert during == after


def test_full_disk_keeps_the_last_good_checkpoint(trained, tmp_path):
    """A limit on the file size makes the kernel refuse the write, as a full disk does."""
    options = ["--resume", "train.output_dir=run", "train.max_iter=6", "train.eval_period=0"]
    # a first checkpoint without the limit, then a resumed run that cannot write the next one
    first = run("train.output_dir=run", "train.max_iter=5", "train.eval_period=0", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
    failed = subprocess.run(
        command(*options), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
    )  # fmt: skip
    assert failed.returncode == 2, failed.stderr
    assert "last good checkpoint is untouched" in failed.stderr
    assert os.strerror(errno.EFBIG) in failed.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
    assert after == before


def test_help_needs_neither_torch_nor_detectron2():
    blocked = "import runpy, sys; sys.modules.update(torch=None, detectron2=None); sys.argv = ['x', '--help']; "
    done = subprocess.run(
        [sys.executable, "-c", blocked + f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_the_release_commands_run_as_its_readmes_write_them(tmp_path):
    """conf.py on a folder in ImageNet's layout, shrunk to one narrow layer; the arguments are the two READMEs'."""
    for split, num_images in (("train", 12), ("val", 6)):
        write_imagenet(SyntheticObjects(num_images, split, image_size=64, num_classes=3), tmp_path / "imagenet")
    conf = REPO / "cls_pretrain" / "conf.py"
    small = ["model.model.num_layers=1", "model.model.hidden_dim=24", "model.model.mlp_dim=24", "train.max_iter=2"]
    small += ["model.model.num_classes=3"]
    small += [
        f"dataloader.{split}.{option}" for split in ("train", "test") for option in ("batch_size=4", "num_workers=0")
    ]
    train = ["--num-gpus", 1, f"dataloader.train.dataset.root={tmp_path}/imagenet", "train.output_dir=run"]
    done = run(*train, *small, cwd=tmp_path, config=conf)
    assert done.returncode == 0, done.stderr
    test = ["--num-gpus", 1, "--eval-only", "train.init_checkpoint=run/model_final.pth"]
    test.append(f"dataloader.test.dataset.root={tmp_path}/imagenet/val")
    with_boxes = run(*test, *small, "dataloader.test.dataset.boxes=True", cwd=tmp_path, config=conf)
    assert with_boxes.returncode == 0, with_boxes.stderr
    assert "point_in_box_random" in with_boxes.stdout
    plain = run(*test, *small, cwd=tmp_path, config=conf)
    assert plain.returncode == 0, plain.stderr
    assert "acc5" in plain.stdout
    assert "point_in_box" not in plain.stdout
