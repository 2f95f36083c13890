"""train_clip.py end to end: open_clip's own result, resuming, the record, every kind of data, and every fault."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import clip_train_seams
import open_clip
import open_clip_train.main
import pytest
import torch
from caption_sources import COCO
from clip_train_parts import (
    CHECKPOINTS,
    arguments,
    encoded,
    logging_restored,
    picture,
    run,
    sound,
    weights,
    write_coco,
    write_csv,
    write_shard,
)
from script_parts import REPO, run_two
from torch.testing import assert_close

from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.dense import attach_pool

EXACTLY = {"rtol": 0, "atol": 0}

pytestmark = pytest.mark.usefixtures("training_folder")


def log(folder="logs/run"):
    return Path(folder, "out.log").read_text()


def test_every_seam_is_a_name_that_open_clip_looks_up_and_no_other_name_is_replaced(monkeypatch):
    modules = {name: __import__(f"open_clip_train.{name}", fromlist=["_"]) for name in ("main", "data", "zero_shot")}
    functions = [value for module in modules.values() for value in vars(module).values()]
    looked_up = {name for each in functions if hasattr(each, "__code__") for name in each.__code__.co_names}
    for module, _, name in (seam.partition(".") for seam in clip_train_seams.SEAMS):
        assert hasattr(modules[module], name), f"open_clip_train.{module} has renamed {name}"
        assert name in looked_up, f"open_clip_train.{module} no longer looks up {name}"
    found = set()
    before = {key: dict(vars(module)) for key, module in modules.items()}

    def look(*args, **kwargs):
        found.update(
            f"{key}.{name}"
            for key, module in modules.items()
            for name, value in vars(module).items()
            if value is not before[key].get(name)
        )
        raise KeyboardInterrupt

    write_csv(count=4)
    monkeypatch.setattr(open_clip_train.data, "get_csv_dataset", look)
    before["data"]["get_csv_dataset"] = look
    assert run(train_data="data.csv") == 130
    assert found == set(clip_train_seams.SEAMS)
    assert open_clip_train.main.torch is torch  # closed again


def test_cls_is_open_clip_bit_by_bit_and_checkpoints_serve_open_clip(capsys):
    write_csv(count=8)
    assert run(train_data="data.csv", pooling="cls", name="cls") == 0
    open_clip.add_model_config("tiny_vit_clip.json")
    with logging_restored():
        open_clip_train.main.main(arguments(train_data="data.csv", model="tiny_vit_clip", name="plain"))
    plain = torch.load("logs/plain/checkpoints/epoch_2.pt", weights_only=True)
    assert_close(weights("logs/cls/checkpoints/epoch_2.pt"), plain["state_dict"], **EXACTLY)
    assert run(train_data="data.csv", top_k=3, variant="paper") == 0
    trained = weights()
    assert trained.keys() == plain["state_dict"].keys()
    assert not torch.equal(trained["visual.proj"], plain["state_dict"]["visual.proj"])
    pooling = {"pool": "last", "top_k": 3, "variant": "paper"}
    record = json.loads((CHECKPOINTS / "last_vit.json").read_text())
    assert record == {**pooling, "model": "tiny_vit_clip", "force_quick_gelu": False}
    inside = torch.load(CHECKPOINTS / "epoch_2.pt", weights_only=True)["pooling"]
    assert inside == {**pooling, "sigma": None}
    assert json.loads((CHECKPOINTS / "tiny_vit_clip.json").read_text())["embed_dim"] == 16
    model = open_clip.create_model("tiny_vit_clip", pretrained=str(CHECKPOINTS / "epoch_2.pt"))
    assert_close(model.state_dict(), trained, **EXACTLY)
    options = {"train_data": "data.csv", "top_k": 3, "variant": "paper"}
    for change, what in (
        ({"pooling": "cls", "top_k": None, "variant": None}, "pool 'last' -> 'cls'"),
        ({"top_k": 2}, "top_k 3 -> 2"),
        ({"force_quick_gelu": True}, "force_quick_gelu False -> True"),
        ({"name": None}, "--name"),
    ):
        assert run(**{**options, **change}, resume="latest") == 2
        assert what in capsys.readouterr().err
    assert run(**{**options, "top_k": 2}, resume=CHECKPOINTS / "epoch_1.pt", name="other") == 2
    assert "top_k 3 -> 2" in capsys.readouterr().err
    assert run(**options) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert not Path("logs/other").exists()


def test_stopped_within_an_epoch_and_resumed_is_the_uninterrupted_run_bit_by_bit(monkeypatch, capsys):
    write_coco("coco")
    options = {"train_data": "coco", "dataset_type": COCO, "workers": 0, "epochs": 2}
    assert run(name="whole", **options) == 0
    original = open_clip_train.main.train_one_epoch
    seen = []

    def interrupted(model, data, loss, epoch, *args, **kwargs):
        seen.append(model.visual._global_pool.pool)

        def stopping(**inputs):
            if epoch == 1 and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(**inputs)

        return original(model, data, stopping, epoch, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(open_clip_train.main, "train_one_epoch", interrupted)
        patch.setattr(sys, "argv", ["clip/train_clip.py", "--resume", "an/old.pt", "--lr", "0.001"])
        assert run(**options) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    where = f"stopped after 1 steps of epoch 1, saved in {CHECKPOINTS}/epoch_latest.pt"
    assert line.endswith(f"{where}; go on with: python clip/train_clip.py --resume=latest --name=run --lr 0.001")
    assert (seen[0].kind, seen[0].top_k, seen[0].variant) == ("last", 0.5, "release")
    assert run("--save-most-recent", name="whole", resume="latest", **options) == 2
    assert "has epoch_2.pt only: leave out --save-most-recent" in capsys.readouterr().err
    (CHECKPOINTS / "tmp.pt").write_bytes(b"half of a checkpoint")
    assert run(resume="latest", **{**options, "workers": 2}) == 0
    assert "epoch_latest.pt' (epoch 1)" in log()
    assert_close(weights(), weights("logs/whole/checkpoints/epoch_2.pt"), **EXACTLY)
    Path("logs/run/run.lock").write_text(json.dumps({"process": 1, "host": "another"}))
    assert run(resume="latest", **options) == 2
    assert "process 1 on another" in capsys.readouterr().err


def test_the_newest_checkpoint_is_the_highest_epoch_or_a_later_latest(tmp_path):
    newest = clip_train_seams.newest_checkpoint
    assert newest(tmp_path) is None
    for time, name in enumerate(("epoch_10.pt", "epoch_latest.pt", "epoch_9.pt", "tmp.pt", ".epoch_11.pt.tmp")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    assert newest(tmp_path).name == "epoch_latest.pt"
    os.utime(tmp_path / "epoch_10.pt")
    assert newest(tmp_path).name == "epoch_10.pt"


def test_loss_and_weights_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(capsys, monkeypatch):
    write_csv(count=12)
    original = open_clip_train.main.create_loss

    def breaking(args):
        loss, calls = original(args), []

        def call(**inputs):
            calls.append(1)
            terms = loss(**inputs)
            return {name: term * float("nan") if len(calls) == 5 else term for name, term in terms.items()}

        return call

    def diverge(model, *_, **__):
        with torch.no_grad():
            model.visual.proj[0, 0] = float("inf")

    with monkeypatch.context() as patch:
        patch.setattr(open_clip_train.main, "create_loss", breaking)
        assert run(train_data="data.csv") == 2  # 3 steps per epoch: the fifth loss is epoch 1's step 1
    error = capsys.readouterr().err
    assert "contrastive_loss is nan in epoch 1, step 1;" in error
    assert f"the last checkpoint, {CHECKPOINTS}/epoch_1.pt, is good: resume from it with --resume latest and" in error
    assert "--precision" not in error  # of a run in float32
    assert [path.name for path in CHECKPOINTS.glob("*.pt")] == ["epoch_1.pt"]
    assert all(tensor.isfinite().all() for tensor in weights(CHECKPOINTS / "epoch_1.pt").values())
    monkeypatch.setattr(open_clip_train.main, "train_one_epoch", diverge)  # the last step's loss was finite
    assert run(train_data="data.csv", epochs=1, name="weights") == 2
    assert "tensor 'visual.proj' has 1 of 512 values that are NaN or infinite" in capsys.readouterr().err
    assert not list(Path("logs/weights/checkpoints").glob("*.pt"))


def test_checkpointing_compiling_and_bf16(monkeypatch):
    # traced; the code generator alone would take two minutes
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    write_csv(count=4)
    options = {"train_data": "data.csv", "top_k": 4, "epochs": 1, "warmup": 0}
    assert run(**options) == 0
    free = weights("logs/run/checkpoints/epoch_1.pt")
    for flag, tolerance in (("grad_checkpointing", (1e-4, 1e-5)), ("torchcompile", (1e-3, 1e-4))):
        assert run(**options, name=flag, **{flag: True}) == 0
        same = weights(f"logs/{flag}/checkpoints/epoch_1.pt")
        assert_close(free, same, rtol=tolerance[0], atol=tolerance[1])
    # from a file without the bias of a sigmoid loss, which begins at zero
    sigmoid = {"siglip": True, "pretrained": "logs/run/checkpoints/epoch_1.pt", "precision": "amp_bf16"}
    assert run(**options, name="sigmoid", **sigmoid) == 0
    trained = weights("logs/sigmoid/checkpoints/epoch_1.pt")
    assert trained["logit_bias"].isfinite().all()
    assert trained["visual.proj"].dtype == torch.float32


def test_two_processes_train_like_one():
    write_coco("coco", count=16)
    # the gradient of an attention's key bias is zero but for rounding, which Adam would blow up without a large eps
    options = {"train_data": "coco", "dataset_type": COCO, "epochs": 1, "eps": 0.01}
    assert run(**options, batch_size=8) == 0
    said = run_two("clip/train_clip.py", *arguments("--local-loss", "--gather-with-grad", **options, name="two"))
    assert said.count("Start epoch 0") == 1  # each line once
    two = {name.removeprefix("module."): tensor for name, tensor in weights("logs/two/checkpoints/epoch_1.pt").items()}
    assert_close(weights("logs/run/checkpoints/epoch_1.pt"), two, rtol=1e-3, atol=1e-5)
    assert "Training data: 0 skipped" in log("logs/two")


def test_shards_with_faults_are_trained_on_and_counted(capsys):
    samples = {f"{number:09d}": sound(number) for number in range(8)}
    samples["000000008"] = {**sound(8), "jpg": encoded(picture(8))[:300]}  # cut short
    samples["000000009"] = {"jpg": encoded(picture(9)), "json": b"{}"}  # no caption
    samples["000000010"] = {**sound(10), "txt": b" \n"}  # a blank one
    samples["000000011"] = {"txt": b"no image", "json": b"{}"}
    samples["000000012"] = {**sound(12), "jpg": encoded(picture(12, "L"))}  # grey
    samples["000000013"] = {"png": encoded(picture(13, "RGBA"), "PNG"), "txt": b"with alpha"}
    samples["000000014"] = {"jpg": encoded(picture(14, "CMYK")), "json": b"broken {", "txt": b"for print"}
    write_shard("0.tar", dict(list(samples.items())[:8]))
    write_shard("1.tar", dict(list(samples.items())[8:]))
    whole = Path("0.tar").read_bytes()
    Path("2.tar").write_bytes(whole[: len(whole) // 2])
    Path("3.tar").write_bytes(b"this is no archive")
    # more than one pass over them is planned, so each is met; their order is open_clip's, a function of the time
    assert run(train_data="{0..3}.tar", train_num_samples=24, epochs=1, val_data="1.tar") == 0
    text = log()
    found = re.search(r"Training data: \d+ skipped \((.*)\)", text)
    counts = {reason: int(count) for count, reason in (part.split(" ", 1) for part in found[1].split(", "))}
    for reason, count in (("broken member", 1), ("no caption", 2), ("no image", 1), ("broken archive", 2)):
        assert counts[reason] >= count
    assert "000000009" in text
    assert "Validation data: 4 skipped (1 no image, 2 no caption, 1 broken member)" in text
    write_shard("9.tar", {"a": {"txt": b"no image"}, "b": {"jpg": b"no picture", "txt": b"text"}})
    assert run(train_data="9.tar", train_num_samples=8, name="none") == 2
    error = capsys.readouterr().err
    assert "an epoch had 0 of its 2 batches" in error
    assert "1 no image, 1 broken member" in error


def test_csv_with_faults_is_trained_on_and_counted(capsys):
    write_csv(row2="missing.png\ta caption", row5="image5.png\t", row7="data.csv\tno image")
    assert run(train_data="data.csv", epochs=1, batch_size=10, workers=1) == 0
    assert "Training data: 3 skipped (2 broken image, 1 no caption)" in log()
    write_csv("bad.csv", **{f"row{number}": "missing.png\tx" for number in range(10)})
    assert run(train_data="bad.csv", epochs=1, name="bad") == 2
    assert "10 samples in a row" in capsys.readouterr().err


def test_drawn_images_class_folders_validation_and_a_teacher(monkeypatch):
    drawn = {"dataset_type": "synthetic-captions", "train_num_samples": 4, "epochs": 1}
    assert run(**drawn, val_data="drawn", val_num_samples=6) == 0
    assert "Clip Loss" in log()
    write_imagenet(SyntheticObjects(8, "train", 32, num_classes=4), "folders")
    options = {"train_data": "folders", "dataset_type": "class-folder", "class_names": "names.txt", "epochs": 1}
    Path("names.txt").write_text("star; pointed thing\nring\nsquare\ncross\n")
    assert run(**options, caption_template="a drawing of a {}", name="classes") == 0
    attached = []
    monkeypatch.setattr(clip_train_seams, "attach_pool", lambda *a, **k: attached.append(a[0]) or attach_pool(*a, **k))
    teacher = ["--distill-model", "tiny_vit_clip", "--distill-pretrained", "logs/run/checkpoints/epoch_1.pt"]
    assert run(*teacher, dataset_type="synthetic", train_num_samples=4, epochs=1, name="dummy") == 0
    assert len(attached) == 1  # the teacher keeps its own pooling


def test_flags_of_open_clip_are_shown_and_unknown_ones_refused(capsys):
    assert run("--help-open-clip") == 0
    assert "--gather-with-grad" in capsys.readouterr().out
    assert run("--no-such-flag", train_data="x.csv") == 2
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "data", "variables", "expected"),
    [
        ("clip_mini_synthetic", [], {}, "160 steps x 2 epochs = 320 steps, 40,960 samples"),
        ("laion400m_vitb16", ["0.tar"], {"BATCH": "5376"}, "119,120 steps, 640,389,120 samples"),
        ("laion400m_vitl14_336", ["0.tar"], {"BATCH": "4096"}, "156,320 steps, 640,286,720 samples"),
    ],
)
def test_recipes_plan_what_their_comments_say(capsys, monkeypatch, recipe, data, variables, expected):
    write_shard("0.tar", {"0": sound(0)})
    stand_in = Path("bin/torchrun")  # prints what it was to run
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stand_in.chmod(0o755)
    script = REPO / "clip" / "recipes" / f"{recipe}.sh"
    environment = {**os.environ, **variables, "PYTHON": str(stand_in), "PATH": f"bin:{os.environ['PATH']}"}
    done = subprocess.run([script, *(data or ["logs"]), "run"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    own = words[next(place for place, word in enumerate(words) if word.endswith("train_clip.py")) + 1 :]
    monkeypatch.setattr("clip_train_parts.arguments", lambda: [*own, "--dry-run"])
    assert run() == 0
    printed = capsys.readouterr().out
    assert expected in printed
    if recipe == "laion400m_vitb16":
        assert "98 of 196 patches" in printed
    assert not Path("logs").exists()
    comments = " ".join(script.read_text().replace("#", "").split())
    assert expected.split(" steps")[0].split()[-1] in comments
