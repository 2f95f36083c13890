"""train_clip.py end to end: open_clip's own result, resuming, the record, every kind of data, and every fault."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import clip_train_seams
import open_clip
import open_clip_train.main
import pytest
import torch
import train_clip
from clip_train_overlay import logging_restored
from clip_train_parts import (
    CHECKPOINTS,
    arguments,
    assert_equal,
    encoded,
    picture,
    run,
    sound,
    weights,
    write_coco,
    write_config,
    write_csv,
    write_shard,
)

from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.dense import attach_pool

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "clip" / "train_clip.py"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A folder of its own with the tiny model, no GPU, and open_clip's registry as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    write_config()


def log(folder="logs/run"):
    return Path(folder, "out.log").read_text()


def test_cls_is_open_clip_bit_by_bit_and_last_is_not():
    write_csv()
    assert run(train_data="data.csv", pooling="cls") == 0
    open_clip.add_model_config("tiny_vit_clip.json")
    with logging_restored():
        open_clip_train.main.main(arguments(train_data="data.csv", model="tiny_vit_clip", name="plain"))
    plain = torch.load("logs/plain/checkpoints/epoch_2.pt", weights_only=True)
    assert_equal(weights(), plain["state_dict"])
    assert run(train_data="data.csv", name="last") == 0
    trained = weights("logs/last/checkpoints/epoch_2.pt")
    assert trained.keys() == plain["state_dict"].keys()
    assert not torch.equal(trained["visual.proj"], plain["state_dict"]["visual.proj"])


def test_checkpoint_and_record_serve_open_clip():
    write_csv()
    assert run(train_data="data.csv", top_k=3, variant="paper") == 0
    record = json.loads((CHECKPOINTS / "last_vit.json").read_text())
    assert record == {
        "pool": "last",
        "top_k": 3,
        "variant": "paper",
        "model": "tiny_vit_clip",
        "force_quick_gelu": False,
    }
    assert json.loads((CHECKPOINTS / "tiny_vit_clip.json").read_text())["embed_dim"] == 16
    model = open_clip.create_model("tiny_vit_clip", pretrained=str(CHECKPOINTS / "epoch_2.pt"))
    assert_equal(model.state_dict(), weights())
    # and back: weights of open_clip begin a run here, whatever they were pooled with
    assert run("--pretrained", str(CHECKPOINTS / "epoch_2.pt"), train_data="data.csv", pooling="max", name="on") == 0


def test_training_pools_with_last_and_default_k_is_half(monkeypatch):
    seen = []
    original = open_clip_train.main.train_one_epoch

    def look(model, *args, **kwargs):
        seen.append(model.visual._global_pool.pool)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(open_clip_train.main, "train_one_epoch", look)
    write_csv()
    assert run(train_data="data.csv", epochs=1) == 0
    assert (seen[0].kind, seen[0].top_k, seen[0].variant) == ("last", 0.5, "release")
    assert open_clip_train.main.train_one_epoch is look  # the seams are closed again
    assert open_clip_train.main.torch is torch


def stop_in_epoch(monkeypatch, stop):
    original = open_clip_train.main.train_one_epoch

    def killed(model, data, loss, epoch, *args, **kwargs):
        if epoch == stop:
            raise KeyboardInterrupt
        return original(model, data, loss, epoch, *args, **kwargs)

    monkeypatch.setattr(open_clip_train.main, "train_one_epoch", killed)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_the_uninterrupted_one_bit_by_bit(monkeypatch, workers):
    write_coco("coco")
    options = {"train_data": "coco", "dataset_type": "coco-captions", "workers": workers, "epochs": 3}
    assert run(name="whole", **options) == 0
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(**options)
    # what a killed save leaves behind, and what open_clip's own choice would take
    whole = (CHECKPOINTS / "epoch_2.pt").read_bytes()
    (CHECKPOINTS / "tmp.pt").write_bytes(whole[:100])
    (CHECKPOINTS / "epoch_7.pt").write_bytes(whole[: len(whole) // 2])
    assert run(resume="latest", **options) == 0
    assert "epoch_7.pt is incomplete" in log()
    assert "epoch_2.pt' (epoch 2)" in log()
    assert_equal(weights("logs/run/checkpoints/epoch_3.pt"), weights("logs/whole/checkpoints/epoch_3.pt"))


def test_resume_with_another_pooling_is_refused(capsys):
    write_csv()
    assert run(train_data="data.csv", epochs=1) == 0
    for options, what in (
        ({"pooling": "cls"}, "pool 'last' -> 'cls'"),
        ({"top_k": 2}, "top_k 0.5 -> 2"),
        ({"force_quick_gelu": True}, "force_quick_gelu False -> True"),
    ):
        assert run(train_data="data.csv", resume="latest", **options) == 2
        assert what in capsys.readouterr().err
        assert run(train_data="data.csv", resume=CHECKPOINTS / "epoch_1.pt", name="other", **options) == 2
        assert what in capsys.readouterr().err
    assert not Path("logs/other").exists()
    assert run(train_data="data.csv", name=None, resume="latest") == 2
    assert "--name" in capsys.readouterr().err
    assert run(train_data="data.csv", resume="latest", save_most_recent=True) == 2
    assert "epoch_latest.pt alone" in capsys.readouterr().err
    assert run(train_data="data.csv") == 2
    assert "holds a run already" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(capsys, monkeypatch):
    write_csv(count=12)
    original = open_clip_train.main.create_loss

    def breaking(args):
        loss, calls = original(args), []

        def call(**inputs):
            calls.append(1)
            terms = loss(**inputs)
            return {name: term * float("nan") if len(calls) == 5 else term for name, term in terms.items()}

        return call

    monkeypatch.setattr(open_clip_train.main, "create_loss", breaking)
    assert run(train_data="data.csv") == 2  # 3 steps per epoch: the fifth loss is epoch 1's step 1
    error = capsys.readouterr().err
    assert "contrastive_loss is nan in epoch 1, step 1;" in error
    assert str(CHECKPOINTS) in error
    assert sorted(path.name for path in CHECKPOINTS.glob("*.pt")) == ["epoch_1.pt"]
    assert all(tensor.isfinite().all() for tensor in weights(CHECKPOINTS / "epoch_1.pt").values())


def test_weights_that_are_not_finite_are_never_written(capsys, monkeypatch):
    def diverge(model, *_, **__):
        with torch.no_grad():
            model.visual.proj[0, 0] = float("inf")

    monkeypatch.setattr(clip_train_seams, "guard_epoch", lambda *_: diverge)  # the last step's loss was finite
    write_csv(count=4)
    assert run(train_data="data.csv", epochs=1) == 2
    assert "tensor 'visual.proj' has 1 of 512 values that are NaN or infinite" in capsys.readouterr().err
    assert not list(CHECKPOINTS.glob("*.pt"))


def test_locked_towers_checkpointing_accumulation_and_bf16():
    write_csv(count=8)
    options = {"train_data": "data.csv", "top_k": 4, "epochs": 1, "warmup": 0}
    assert run(**options) == 0
    free = weights("logs/run/checkpoints/epoch_1.pt")
    assert run(**options, name="checkpointing", grad_checkpointing=True) == 0
    assert_equal(free, weights("logs/checkpointing/checkpoints/epoch_1.pt"), rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    start = open_clip.create_model("tiny_vit_clip").state_dict()
    assert run(**options, name="text", lock_text=True, lock_text_freeze_layer_norm=True) == 0
    locked = weights("logs/text/checkpoints/epoch_1.pt")
    is_text = [name for name in start if not name.startswith("visual.") and name != "logit_scale"]
    assert_equal({name: locked[name] for name in is_text}, {name: start[name] for name in is_text})
    assert not torch.equal(locked["visual.proj"], start["visual.proj"])
    assert run(**options, name="image", lock_image=True, lock_image_unlocked_groups=1) == 0
    locked = weights("logs/image/checkpoints/epoch_1.pt")
    assert torch.equal(locked["visual.conv1.weight"], start["visual.conv1.weight"])
    assert not torch.equal(locked["visual.proj"], start["visual.proj"])
    assert run(**options, name="accumulated", accum_freq=2) == 0
    start_file = "logs/run/checkpoints/epoch_1.pt"  # without the bias of a sigmoid loss, which begins at zero
    assert run(**options, name="sigmoid", siglip=True, pretrained=start_file) == 0
    assert "logit_bias" in weights("logs/sigmoid/checkpoints/epoch_1.pt")
    assert run(**options, name="bf16", precision="amp_bf16") == 0
    bf16 = weights("logs/bf16/checkpoints/epoch_1.pt")
    assert bf16["visual.proj"].dtype == torch.float32
    torch.testing.assert_close(bf16["visual.proj"], free["visual.proj"], rtol=0, atol=0.005)


def test_compiled_training_is_the_eager_one(monkeypatch):
    # traced and differentiated as a whole; the code generator alone would take two minutes
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    write_csv(count=4)
    options = {"train_data": "data.csv", "top_k": 4, "epochs": 1, "warmup": 0}
    assert run(**options) == 0
    assert run(**options, name="compiled", torchcompile=True) == 0
    compiled = weights("logs/compiled/checkpoints/epoch_1.pt")
    assert_equal(weights("logs/run/checkpoints/epoch_1.pt"), compiled, rtol=1e-3, atol=1e-4)


def test_two_processes_train_like_one(tmp_path):
    write_coco("coco", count=16)
    # the gradient of an attention's key bias is zero but for rounding, which Adam would blow up without a large eps
    options = {"train_data": "coco", "dataset_type": "coco-captions", "epochs": 1, "workers": 1, "eps": 0.01}
    assert run(**options, batch_size=8) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    flags = arguments("--local-loss", "--gather-with-grad", **options, name="two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two = {name.removeprefix("module."): tensor for name, tensor in weights("logs/two/checkpoints/epoch_1.pt").items()}
    assert_equal(weights("logs/run/checkpoints/epoch_1.pt"), two, rtol=1e-3, atol=1e-5)
    assert "0 skipped samples" in log("logs/two")


def test_shards_with_faults_are_trained_on_and_counted():
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
    found = re.search(r"Epoch 0, training: (\d+) skipped samples \((.*)\)", text)
    counts = {reason: int(count) for count, reason in (part.split(" ", 1) for part in found[2].split(", "))}
    assert sum(counts.values()) == int(found[1])
    for reason, count in (("broken member", 1), ("no caption", 2), ("no image", 1), ("broken archive", 2)):
        assert counts[reason] >= count
    assert "000000009" in text
    assert "Epoch 1, validation: 4 skipped samples (1 no image, 2 no caption, 1 broken member)" in text


def test_shards_without_a_sound_sample_are_an_error(capsys):
    write_shard("0.tar", {"a": {"txt": b"no image"}, "b": {"jpg": b"no picture", "txt": b"text"}})
    assert run(train_data="0.tar", train_num_samples=8) == 2
    error = capsys.readouterr().err
    assert "epoch 0 had 0 of its 2 batches" in error
    assert "1 no image, 1 broken member" in error
    for options, what in (
        ({"train_data": "0.tar"}, "--train-num-samples"),
        ({"train_data": "{5..9}.tar", "train_num_samples": 8}, "none of the 5 shards"),
        ({"train_data": "0.tar", "train_num_samples": 8, "workers": 2}, "--dataset-resampled"),
        ({"train_data": "folder", "train_num_samples": 8}, "--dataset-type"),
        ({}, "no data"),
        ({"dataset_type": "synthetic-captions"}, "--train-num-samples"),
        ({"dataset_type": "synthetic", "train_num_samples": 3}, "less than one step"),
    ):
        assert run(**options, name="other") == 2
        assert what in capsys.readouterr().err
    assert not Path("logs/other").exists()


def test_csv_with_faults_is_trained_on_and_counted(capsys):
    write_csv(row2="missing.png\ta caption", row5="image5.png\t", row7="data.csv\tno image")
    assert run(train_data="data.csv", epochs=1, batch_size=10, workers=1) == 0
    assert "Epoch 0, training: 3 skipped samples (2 broken image, 1 no caption)" in log()
    write_csv("bad.csv", **{f"row{number}": "missing.png\tx" for number in range(10)})
    assert run(train_data="bad.csv", epochs=1, name="bad") == 2
    assert "10 samples in a row" in capsys.readouterr().err
    assert run(train_data="data.csv", name="other", csv_caption_key="caption") == 2
    assert "no column 'caption' (--csv-caption-key)" in capsys.readouterr().err


def test_drawn_images_class_folders_and_validation():
    assert run(dataset_type="synthetic-captions", train_num_samples=8, val_data="drawn", val_num_samples=6) == 0
    assert "Clip Loss" in log()
    write_imagenet(SyntheticObjects(8, "train", 32, num_classes=4), "folders")
    options = {"train_data": "folders", "dataset_type": "class-folder", "class_names": "names.txt", "epochs": 1}
    Path("names.txt").write_text("star; pointed thing\nring\nsquare\ncross\n")
    assert run(**options, caption_template="a drawing of a {}", name="classes") == 0
    assert run(dataset_type="synthetic", train_num_samples=8, epochs=1, name="dummy") == 0


def test_zero_shot_imagenet_during_training(monkeypatch, capsys):
    from open_clip_train import zero_shot

    monkeypatch.setattr(zero_shot, "OPENAI_IMAGENET_TEMPLATES", zero_shot.OPENAI_IMAGENET_TEMPLATES[:1])
    image = picture(0, side=8)
    for number in range(1000):
        path = Path("val", f"n{number:08d}")
        path.mkdir(parents=True)
        if number < 5:
            image.save(path / "0.jpg")
        else:
            os.symlink(Path("val/n00000000/0.jpg").resolve(), path / "0.jpg")
    write_csv(count=4)
    assert run(train_data="data.csv", epochs=1, imagenet_val="val", zeroshot_frequency=1, batch_size=4) == 0
    metrics = json.loads((CHECKPOINTS / "results.jsonl").read_text())
    assert metrics["imagenet-zeroshot-val-top1"] == pytest.approx(0.001)  # one image for all classes
    assert run(train_data="data.csv", imagenet_val=".", name="other") == 2
    assert "eval_zero_shot_cls.py" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["EVA02-B-16", "ViT-B-16-quickgelu"])
def test_dry_run_checks_and_prints_the_arithmetic(capsys, monkeypatch, model):
    monkeypatch.setenv("WORLD_SIZE", "8")
    options = {"dataset_type": "synthetic", "train_num_samples": 64_000_000, "epochs": 10, "batch_size": 672}
    assert run("--dry-run", model=model, **options) == 0
    printed = capsys.readouterr().out
    assert "98 of 196 patches" in printed
    assert "5,376 samples" in printed
    assert "11,904 steps x 10 epochs = 119,040 steps, 639,959,040 samples" in printed
    assert not Path("logs").exists()


def test_distillation_teacher_keeps_its_own_pooling(monkeypatch):
    write_csv(count=4)
    assert run(train_data="data.csv", epochs=1, pooling="cls", name="teacher") == 0
    attached = []
    monkeypatch.setattr("clip_train_seams.attach_pool", lambda *a, **k: attached.append(a[0]) or attach_pool(*a, **k))
    teacher = ["--distill-model", "tiny_vit_clip", "--distill-pretrained", "logs/teacher/checkpoints/epoch_1.pt"]
    assert run(*teacher, train_data="data.csv", epochs=1) == 0
    assert len(attached) == 1


def test_help_works_without_torch():
    block = "import sys; sys.modules['torch'] = None; import train_clip; train_clip.main(['--help'])"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "clip")}
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--pooling", "--top-k", "--variant", "--help-open-clip", "coco-captions"):
        assert flag in done.stdout


def test_help_of_open_clip_and_unknown_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        train_clip.main(["--help-open-clip"])
    assert stopped.value.code == 0
    assert "--gather-with-grad" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run("--no-such-flag", train_data="x.csv")
    assert stopped.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "data", "variables", "expected"),
    [
        ("clip_mini_synthetic", [], {}, "160 steps x 2 epochs = 320 steps, 40,960 samples"),
        ("laion400m_vitb16", ["0.tar"], {"GPUS": "1", "BATCH": "5376"}, "119,120 steps, 640,389,120 samples"),
        (
            "laion400m_vitl14_336",
            ["0.tar"],
            {"GPUS": "1", "BATCH": "4096", "NODES": "1", "MODEL": "ViT-B-32-quickgelu", "RENDEZVOUS": "localhost:0"},
            "156,320 steps, 640,286,720 samples",
        ),
    ],
    ids=["mini", "b16", "l14"],
)
def test_recipes_plan_what_their_comments_say(recipe, data, variables, expected):
    write_shard("0.tar", {"0": sound(0)})
    script = REPO / "clip" / "recipes" / f"{recipe}.sh"
    words = [*data, "run", "--dry-run"] if data else ["logs", "run", "--dry-run"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **variables, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([script, *words], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert expected in done.stdout
    comments = " ".join(script.read_text().replace("#", "").split())
    assert expected.split(" steps")[0].split()[-1] in comments
