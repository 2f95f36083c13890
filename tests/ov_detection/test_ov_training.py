"""ov_detection/lazy_train.py and predict.py end to end on synthetic data: training, killing, resuming, any number of
processes, and every fault."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ov_detector
import ov_prediction
import predict
import pytest
import torch
from class_embeddings import ClassEmbeddings, save_class_embeddings
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from lazy_parts import ENVIRONMENT, REPO, LazyTrain, losses, record
from ov_training import OvTrainer, evaluate_checkpoint
from PIL import Image
from script_parts import run_two

from last_vit import clip_text
from last_vit.clip_models import load_clip
from last_vit.data.synthetic import SyntheticObjects
from last_vit.evaluation import progress
from last_vit.lazy_config import read_config

DEBUG = REPO / "ov_detection" / "configs" / "ov_coco" / "debug_synthetic.py"
SHORT = ["train.output_dir=run", "train.max_iter=4", "train.log_period=1", "train.eval_period=0"]
SHORT += ["model.rpn.post_nms_topk=[50,20]", "dataloader.train.batch_size=2", "train.checkpointer.period=1"]
SHORT += ["train.accumulate=2"]  # 20 images are 5 iterations
LAZY_TRAIN = LazyTrain("ov_detection")


def run(*words):
    assert LAZY_TRAIN.run(*words, config=DEBUG) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run of 4 iterations, its losses logged every iteration."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    run(*SHORT)
    os.chdir(before)
    return folder / "run"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_batches_of_an_iteration_add_up_to_their_mean():
    """Three batches give the losses and gradients of one of their images."""

    class Model(torch.nn.Linear):
        def forward(self, batch):
            return {"a": super().forward(torch.tensor(batch)).mean(), "b": self.bias.sum() * 0}

    rows, found = torch.randn(3, 4, 2).tolist(), []
    for batches in (rows, [[row for batch in rows for row in batch]]):
        torch.manual_seed(0)
        model = Model(2, 1)
        trainer = OvTrainer(model, None, torch.optim.SGD(model.parameters(), lr=1.0))
        with EventStorage() as trainer.storage:
            losses, num_images = trainer.backward(batches)
        assert num_images == 12
        found.append([losses["a"], model.weight.grad])
    torch.testing.assert_close(*found)


def test_names_are_embedded_once_and_where_the_model_runs(monkeypatch):
    devices, cfg = [], read_config(str(DEBUG), [], "")
    load = lambda *args, device, **options: devices.append(str(device)) or load_clip(*args, **options)  # noqa: E731
    monkeypatch.setattr(ov_detector, "load_clip", load)
    first = ov_detector.read_vocabulary(cfg, ["cat", "owl"], torch.device("cuda"))
    monkeypatch.setattr(clip_text, "_encode", None)  # never again
    again = ov_detector.read_vocabulary(cfg, ["cat", "owl"], torch.device("cuda"))
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(first.background, again.background)
    assert devices == ["cuda", "cuda"]


def test_training_leaves_curve_checkpoint_and_record(trained):
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "lr"} <= set(rows[2])
    assert [row["epoch"] for row in rows if "total_loss" in row] == [0.2, 0.4, 0.6, 0.8]
    log = (trained / "log.txt").read_text()
    assert "0.8 epochs of 20 images are 4 iterations of 4 (1 processes x 2 batches x 2)" in log
    assert "Evaluation after 0.8 epochs" in log
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    content = torch.load(trained / "model_final.pth", weights_only=True)
    assert set(content) == {"model", "trainer", "iteration", "detector"}
    assert not any("tower" in name for name in content["model"])
    assert len(content["detector"]["base_names"]) == 3
    assert content["detector"]["clip"]["weights"] == "random, seed 0"
    found = record(trained / "train_run.json")
    assert (found["n_images"], found["table"]) == (10, None)
    assert {"ap50_all", "ap50_base", "ap50_novel", "mask_ap50_all"} <= set(found["metrics"])
    assert str(trained.parent) not in json.dumps(found)


def test_sigkill_then_resume_continues_bit_identically(trained):
    command = [sys.executable, str(LAZY_TRAIN.script), "--config-file", str(DEBUG), *SHORT]
    process = subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    pointer, deadline = Path("run/last_checkpoint"), time.monotonic() + 600
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert pointer.exists(), "no checkpoint was written before the deadline"
    if pointer.read_text() == "model_final.pth":  # it outran the kill: take it back to an earlier checkpoint
        pointer.write_text("model_0000001.pth")
    run("--resume", *SHORT)
    assert Path("run/metrics.json").read_text().count('"iteration": 0,') == 1  # it did not begin anew
    assert set(losses(trained)) == set(range(4))
    assert losses("run") == losses(trained)
    final, again = (torch.load(f / "model_final.pth", weights_only=True) for f in (trained, Path("run")))
    assert record("run/best_run.json")["metrics"]["ap50_novel"] == record("run/train_run.json")["metrics"]["ap50_novel"]
    assert all(torch.equal(final["model"][name], again["model"][name]) for name in final["model"])


def test_two_processes_train_and_find_the_ap_of_one():
    """10 images over 2 processes, one per batch: every image once, so the same numbers. --row shows them in a table."""
    options = ["dataloader.test.batch_size=1", "train.output_dir=run", *SHORT[2:]]
    words = ["--config-file", DEBUG, "train.max_iter=2", "train.gradient_compression=bf16", *options]
    run_two("ov_detection/lazy_train.py", *words, **ENVIRONMENT, XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"])
    assert set(losses("run")) == {0, 1}
    run("--eval-only", "--row", "mine", "train.init_checkpoint=run/model_final.pth", *options)
    (path,) = Path("results").iterdir()
    one, two = record(path), record("run/train_run.json")
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert (one["n_images"], one["metrics"]) == (two["n_images"], two["metrics"])
    assert (one["table"], one["row"], one["n_images"]) == ("ov_coco", "mine", 10)


def test_transfer_to_classes_of_which_none_is_novel(trained):
    options = [
        "evaluation.kinds=[box]",
        "dataloader.test.dataset.num_novel=0",
        "model.classifier.fixed_temperature=50.",
    ]
    cfg = read_config(str(DEBUG), [f"train.init_checkpoint={trained}/model_final.pth", *options], "")
    found = evaluate_checkpoint(cfg, torch.device("cpu"))
    assert found["ap_all"] == found["ap_base"]
    assert not {name for name in found if name.startswith("mask") or name.endswith("_novel")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.clip.random_seed=1"], "was trained on another frozen CLIP (weights 'random, seed 0'"),
        (["model.clip.dense=plain"], "dense 'last-block-value', now 'plain'"),
        (["model.square_size=72"], "square_size must be a multiple of 16"),
        (["model.channels=24"], "model_final.pth"),
        (["vocabulary.path=nowhere.safetensors"], "nowhere.safetensors"),
        (["vocabulary.path=lacking.safetensors"], "4 of 5 classes have no embedding"),
        (["vocabulary.path=wide.safetensors"], "the class embeddings have 7 numbers"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_parts_that_do_not_belong_together(overrides, message, trained):
    names = tuple(SyntheticObjects(5, "val", 64, 5).classes)
    save_class_embeddings("wide.safetensors", ClassEmbeddings(names, torch.eye(5, 7), torch.ones(7), "t", "p"))
    save_class_embeddings("lacking.safetensors", ClassEmbeddings(names[:1], torch.eye(1, 128), None, "t", "p"))
    save_class_embeddings("right.safetensors", ClassEmbeddings(names, torch.eye(5, 128), torch.ones(128), "t", "p"))
    options = [f"train.init_checkpoint={trained}/model_final.pth", "vocabulary.path=right.safetensors"]
    cfg = read_config(str(DEBUG), [*options, *overrides], "")
    cfg.dataloader.test.dataset.folder = str(trained.parent / "output" / "synthetic_ov")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        evaluate_checkpoint(cfg, torch.device("cpu"))


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: 40 high, 60 wide
    Image.fromarray(noise).save(tmp_path / "photo.jpg", exif=exif)
    rows = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    save_class_embeddings("own.safetensors", ClassEmbeddings(("cat", "dog"), rows[:2], rows[2], "t", "p"))
    return tmp_path / "photo.jpg"


def predict_command(trained, photo, *arguments):
    required = ["--config-file", DEBUG, "--checkpoint", trained / "model_final.pth", "--image", photo, "--threshold", 0]
    return [str(word) for word in (*required, *arguments)]


def test_predict_draws_any_vocabulary(trained, photo, capsys, monkeypatch):
    bars = []
    monkeypatch.setattr("ov_prediction.progress", lambda *words: bars.append(words[1:]) or progress(*words))
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
    assert bars == [("predict", "image")]
    predict.main(predict_command(trained, photo, "--embeddings", "own.safetensors", "--output", "out"))
    assert json.loads(Path("out/detections.json").read_text())["vocabulary"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--vocabulary, --embeddings, or both"),
        (["--vocabulary", "cat", "--threshold", "2"], "--threshold must be in [0, 1]"),
        (["--vocabulary", "cat", "--image", "photo.jpg", "a/photo.png"], "no image a/photo.png"),
        (["--vocabulary", "cat", "--image", "photo.jpg", "photo.jpg"], "several images are called 'photo'"),
        (["--vocabulary", "cat,dgo", "--embeddings", "own.safetensors"], "1 of 2 classes have no embedding: dgo"),
        (["--vocabulary", "cat", "--embeddings", "nowhere.pt"], "nowhere.pt"),
        (["--embeddings", "own.safetensors", "--image", "broken.jpg"], "broken.jpg cannot be read"),
        (["--embeddings", "own.safetensors", "--checkpoint", "bare.pth"], "convert_fvit_checkpoint.py --json"),
        (["--vocabulary", "cat", "--opts", "model.claip.dense=plain"], "did you mean model.clip"),
    ],
)
def test_predict_refuses(arguments, message, trained, photo, refused):
    Path("broken.jpg").write_bytes(b"no image")
    torch.save({"model": torch.load(trained / "model_final.pth", weights_only=True)["model"]}, "bare.pth")
    error = refused(predict.main, *predict_command(trained, photo, *arguments))
    assert error.startswith("predict.py: error: ")
    assert message in error


@pytest.mark.parametrize(("count", "is_filled"), [(10, True), (11, False)])
def test_many_masks_are_drawn_as_rims(tmp_path, count, is_filled):
    """A mask below all others is painted inside while there are few, and only on its rim where there are many."""
    masks = torch.zeros(count, 480, 480, dtype=torch.bool)
    masks[:, 200:400, 200:400] = True
    boxes, labels = torch.tensor([[200.0, 200, 400, 400]]).expand(count, 4), torch.zeros(count, dtype=torch.long)
    found = Instances(
        (480, 480), pred_boxes=Boxes(boxes), pred_classes=labels, scores=torch.ones(count), pred_masks=masks
    )
    ov_prediction._draw(np.zeros((480, 480, 3), np.uint8), found, ["cat"], tmp_path / "a.png")
    picture = np.array(Image.open(tmp_path / "a.png")).max(axis=2)
    assert (picture[300, 300] > 0) == is_filled
    assert picture[300, 201] > 0
    assert picture[300, 190] == 0
