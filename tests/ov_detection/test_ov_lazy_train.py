"""ov_detection/lazy_train.py and predict.py end to end on synthetic data: training, killing, resuming, any number of
processes, and every fault."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import predict
import pytest
import torch
from class_embeddings import ClassEmbeddings, save_class_embeddings
from ov_training import OvTrainer, evaluate_checkpoint
from PIL import Image
from torch import nn

from last_vit.data.synthetic import SyntheticObjects
from last_vit.lazy_config import read_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "ov_detection" / "lazy_train.py"
DEBUG = REPO / "ov_detection" / "configs" / "ov_coco" / "debug_synthetic.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
SHORT = ["train.output_dir=run", "train.max_iter=4", "train.log_period=1", "train.eval_period=0"]
SHORT += ["model.rpn.post_nms_topk=[50,20]", "dataloader.train.batch_size=2", "train.checkpointer.period=1"]


def load_script():
    """By path: both track folders hold a lazy_train.py."""
    spec = importlib.util.spec_from_file_location("ov_lazy_train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*args):
    return [sys.executable, str(SCRIPT), "--config-file", str(DEBUG), *map(str, args)]


def run(*args, cwd):
    done = subprocess.run(command(*args), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def status(arguments):
    try:
        load_script().main(arguments)
    except SystemExit as stop:
        return stop.code
    return 0


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run of 4 iterations, its losses logged every iteration."""
    cwd = tmp_path_factory.mktemp("trained")
    run(*SHORT, cwd=cwd)
    return cwd / "run"


def test_training_leaves_curve_checkpoint_and_record(trained):
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "lr"} <= set(rows[2])
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    content = torch.load(trained / "model_final.pth", weights_only=True)
    assert set(content) == {"model", "trainer", "iteration", "detector"}
    assert not any("tower" in name for name in content["model"])
    assert len(content["detector"]["base_names"]) == 3
    assert content["detector"]["clip"]["weights"] == "random, seed 0"
    record = json.loads((trained / "train_run.json").read_text())
    assert record["n_images"] == 10
    assert {"ap50_all", "ap50_base", "ap50_novel", "mask_ap50_all"} <= set(record["metrics"])
    assert record["table"] is None
    assert str(trained.parent) not in json.dumps(record)


def test_sigkill_then_resume_continues_bit_identically(trained, tmp_path):
    process = subprocess.Popen(
        command(*SHORT), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    pointer, deadline = tmp_path / "run" / "last_checkpoint", time.monotonic() + 120
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pointer.exists(), "no checkpoint was written before the deadline"
    if pointer.read_text() == "model_final.pth":  # it outran the kill: take it back to an earlier checkpoint
        pointer.write_text("model_0000001.pth")
    assert "Resuming from" in run("--resume", *SHORT, cwd=tmp_path)
    expected = losses(trained)
    assert set(expected) == set(range(4))
    assert losses(tmp_path / "run") == expected
    final, again = (torch.load(f / "model_final.pth", weights_only=True) for f in (trained, tmp_path / "run"))
    assert all(torch.equal(final["model"][name], again["model"][name]) for name in final["model"])


def test_two_processes_give_the_ap_of_one(trained, tmp_path):
    """10 images over 1 and over 2 processes: every image once, so the same record. One image per batch."""
    records = []
    for num_processes in (1, 2):
        cwd = tmp_path / str(num_processes)
        cwd.mkdir()
        options = [f"train.init_checkpoint={trained}/model_final.pth", "dataloader.test.batch_size=1"]
        options += ["model.rpn.post_nms_topk=[50,20]", "train.output_dir=run"]
        run("--eval-only", "--num-gpus", num_processes, *options, cwd=cwd)
        records.append(json.loads((cwd / "run" / "eval_run.json").read_text()))
    one, two = records
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["n_images"] == two["n_images"] == 10
    assert one["metrics"] == two["metrics"]
    assert one["metrics"] == json.loads((trained / "train_run.json").read_text())["metrics"]


def test_two_processes_train(tmp_path):
    run("--num-gpus", 2, *SHORT[:4], "train.max_iter=2", *SHORT[4:], cwd=tmp_path)
    assert set(losses(tmp_path / "run")) == {0, 1}
    assert json.loads((tmp_path / "run" / "train_run.json").read_text())["num_processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.roi_head.beta=0.5"], "did you mean model.roi_heads"),
        (["model.roi_heads.bets=0.5"], "did you mean model.roi_heads.beta"),
        (["beta"], "looks like key=value"),
        (["train.max_iter=many"], "train.max_iter must be of type int"),
        (["--num-gpus", "0"], "--num-gpus"),
        (["--eval-only"], "needs train.init_checkpoint"),
    ],
)
def test_user_errors_before_anything_is_built(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status(["--config-file", str(DEBUG), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lazy_train.py: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_missing_config_and_earlier_run(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert status(["--config-file", "no.py"]) == 2
    assert "no config file no.py" in capsys.readouterr().err
    assert status(["--config-file", str(DEBUG), f"train.output_dir={trained}"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.clip.random_seed=1"], "was trained on another frozen CLIP (weights 'random, seed 0'"),
        (["model.clip.dense=plain"], "dense 'last-block-value', now 'plain'"),
        (["model.clip.dense=none"], "dense must be one of last-block-value, plain"),
        (["model.square_size=72"], "square_size must be a multiple of 16"),
        (["model.channels=24"], "model_final.pth"),
        (["model.roi_heads.alpha=1.5"], "alpha must be in [0, 1]"),
        (["vocabulary.path=nowhere.safetensors"], "nowhere.safetensors"),
        (["vocabulary.path=lacking.safetensors"], "4 of 5 classes have no embedding"),
        (["vocabulary.path=wide.safetensors"], "the class embeddings have 7 numbers"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_parts_that_do_not_belong_together(overrides, message, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = tuple(SyntheticObjects(5, "val", 64, 5).classes)
    save_class_embeddings("wide.safetensors", ClassEmbeddings(names, torch.eye(5, 7), torch.ones(7), "t", "p"))
    save_class_embeddings("lacking.safetensors", ClassEmbeddings(names[:1], torch.eye(1, 128), None, "t", "p"))
    cfg = read_config(str(DEBUG), [f"train.init_checkpoint={trained}/model_final.pth", *overrides], "")
    cfg.dataloader.test.dataset.folder = str(trained.parent / "output" / "synthetic_ov")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        evaluate_checkpoint(cfg, torch.device("cpu"))


@pytest.mark.parametrize("override", ["train.max_iter=0", "train.log_period=0", "train.checkpointer.period=0"])
def test_iterations_that_detectron2_would_divide_by(override, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status(["--config-file", str(DEBUG), *SHORT, override]) == 2
    assert f"{override.removesuffix('=0')} must be at least 1" in capsys.readouterr().err


def test_predict_needs_to_know_what_was_trained_on(trained, photo, tmp_path, capsys):
    content = torch.load(trained / "model_final.pth", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "converted.pth")
    arguments = predict_command(trained, photo, "--vocabulary", "cat")
    with pytest.raises(SystemExit):
        predict.main([*arguments, "--checkpoint", str(tmp_path / "converted.pth")])
    assert "convert_fvit_checkpoint.py --json" in capsys.readouterr().err


def test_an_error_in_a_run_is_one_line(tmp_path):
    arguments = command("--num-gpus", 2, "model.clip.dense=none")
    failed = subprocess.run(arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert any(line.startswith("lazy_train.py: error: dense must be one of") for line in failed.stderr.splitlines())
    assert "Traceback" not in failed.stderr


class Scaled(nn.Module):
    """Its loss is what the batch says, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss_cls": self.weight * batch[0]}


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "loss_cls is nan"), (float("inf"), "loss_cls is inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value, named):
    model = Scaled()
    trainer = OvTrainer(model, [[1.0], [value]], torch.optim.SGD(model.parameters(), lr=0.5), clip_grad_norm=9.0)
    with pytest.raises(FloatingPointError, match=f"{named} at iteration 1; nothing of it was saved"):
        trainer.train(0, 2)


def test_help_needs_neither_torch_nor_detectron2():
    block = "import runpy, sys; sys.modules.update(torch=None, detectron2=None); sys.argv = ['x', '--help']; "
    for script in (SCRIPT, SCRIPT.with_name("predict.py")):
        done = subprocess.run(
            [sys.executable, "-c", block + f"runpy.run_path({str(script)!r}, run_name='__main__')"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "--config-file" in done.stdout


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def predict_command(trained, photo, *arguments):
    required = ["--config-file", DEBUG, "--checkpoint", trained / "model_final.pth", "--image", photo, "--threshold", 0]
    return [str(word) for word in (*required, *arguments)]


def test_predict_draws_any_vocabulary(trained, photo, capsys):
    predict.main(predict_command(trained, photo, "--vocabulary", "cat, traffic cone", "--output", "out"))
    answer = json.loads(Path("out/detections.json").read_text())
    assert answer["vocabulary"] == ["cat", "traffic cone"]
    image = answer["images"][0]
    assert (image["image"], image["height"], image["width"]) == ("photo.jpg", 40, 60)
    assert 0 < len(image["detections"]) <= 100
    for found in image["detections"]:
        x0, y0, x1, y1 = found["box_xyxy"]
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 40
        assert found["class"] in answer["vocabulary"]
        assert found["segmentation"]["size"] == [40, 60]
    scores = [found["score"] for found in image["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert Image.open("out/photo.png").size == (720, 480)
    assert "photo.jpg: " in capsys.readouterr().out


def test_predict_takes_stored_embeddings(trained, photo):
    rows = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    save_class_embeddings("own.safetensors", ClassEmbeddings(("a", "b", "c"), rows[:3], rows[3], "t", "p"))
    predict.main(predict_command(trained, photo, "--embeddings", "own.safetensors", "--output", "out"))
    assert json.loads(Path("out/detections.json").read_text())["vocabulary"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", "cat,dog,cat"], "more than once: cat"),
        (["--vocabulary", " "], "the vocabulary is empty"),
        (["--vocabulary", "cat,,dog"], "name 2 of 3 is empty"),
        ([], "--vocabulary, --embeddings, or both"),
        (["--vocabulary", "cat", "--threshold", "2"], "--threshold must be in [0, 1]"),
        (["--vocabulary", "cat", "--image", "none.jpg"], "no image none.jpg"),
        (["--vocabulary", "cat", "--image", "photo.jpg", "a/photo.png"], "no image a/photo.png"),
        (["--vocabulary", "cat", "--image", "photo.jpg", "photo.jpg"], "several images are called 'photo'"),
        (["--vocabulary", "cat,dgo", "--embeddings", "own.safetensors"], "1 of 2 classes have no embedding: dgo"),
        (["--vocabulary", "cat", "--embeddings", "wide.safetensors"], "the class embeddings have 7 numbers"),
        (["--vocabulary", "cat", "--embeddings", "nowhere.pt"], "nowhere.pt"),
        (["--vocabulary", "cat", "--image", "broken.jpg"], "broken.jpg cannot be read"),
        (["--vocabulary", "cat", "--opts", "model.claip.dense=plain"], "did you mean model.clip"),
    ],
)
def test_predict_refuses(arguments, message, trained, photo, capsys):
    Path("broken.jpg").write_bytes(b"no image")
    for name, width in (("own", 128), ("wide", 7)):
        rows = torch.randn(3, width)
        save_class_embeddings(f"{name}.safetensors", ClassEmbeddings(("cat", "dog"), rows[:2], rows[2], "t", "p"))
    with pytest.raises(SystemExit) as stop:
        predict.main(predict_command(trained, photo, *arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("predict.py: error: ")
    assert message in error
