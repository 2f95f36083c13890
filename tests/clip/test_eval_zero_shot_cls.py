"""Zero-shot classification: open_clip's own evaluation as the reference, by hand with synonyms, under torchrun."""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import eval_zero_shot_cls
import open_clip
import pytest
import torch
from class_names import imagenet_wnids
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from open_clip_train import zero_shot
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from zero_shot_classification import ClassAccuracy

from last_vit.clip_text import encode_class_names, read_templates, zero_shot_scores
from last_vit.data.synthetic import SyntheticObjects
from last_vit.dense import attach_last

REPO = Path(__file__).resolve().parents[2]
WNIDS = imagenet_wnids()[:7]
CPU = ("--device", "cpu", "--num-workers", "0", "--batch-size", "5", "--text-cache", "cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two CLIPs and 17 drawn images of seven classes, in ImageNet's layout and as a plain folder, of odd shapes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_clip(tmp_path)
    write_clip(tmp_path, "other", tiny_clip(seed=1))
    samples = SyntheticObjects(17, "val", image_size=64, num_classes=7)
    for index in range(17):
        image = samples.render(index).image.resize((40 + index, 60 - index))
        for folder in (
            Path("imagenet/val") / WNIDS[index % 7],
            Path("shapes") / samples.classes[index % 7].replace(" ", "_"),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index:02d}.png")
    return tmp_path


def results() -> dict[str, dict]:
    """Records by the model's place in the file's name."""
    found = [*Path("results").glob("*.json"), *Path("output").rglob("*.json")]
    return {path.stem.split("-")[0]: json.loads(path.read_text()) for path in found}


def stop(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        eval_zero_shot_cls.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eval_zero_shot_cls.py: error: ")
    return error


@pytest.mark.parametrize("pool", ["", ",pool=last,top_k=3"])
def test_equals_open_clips_evaluation(here, monkeypatch, pool):
    """Its classifier, its loop, its transform, on the same model with the same read-out.

    Its `accuracy` turns one-element arrays into numbers, which numpy 2.4 refuses; the loop looks it up by name.
    """

    def accuracy(output, target, topk):
        ranked = output.topk(max(topk), dim=1).indices
        return [float((ranked[:, :k] == target[:, None]).sum()) for k in topk]

    monkeypatch.setattr(zero_shot, "accuracy", accuracy)
    model = tiny_clip()
    if pool:
        attach_last(model, 3)
    names = [open_clip.IMAGENET_CLASSNAMES[index] for index in range(7)]
    classifier = open_clip.build_zero_shot_classifier(
        model, tiny_tokenizer(), names, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    transform = open_clip.image_transform(32, is_train=False)
    loader = DataLoader(ImageFolder("imagenet/val", transform), batch_size=17)
    args = argparse.Namespace(device="cpu", precision="fp32", batch_size=17)
    model.output_dict = True
    top1, top5 = zero_shot.run(model, classifier, loader, args)
    eval_zero_shot_cls.main(
        ["--imagenet-root", "imagenet", "--model", f"A=open_clip:clip_tiny.json@clip_tiny.pt{pool}", *CPU, "--table"]
    )
    (record,) = results().values()
    assert record["metrics"]["acc1"] == pytest.approx(100 * top1, abs=1e-4)
    assert record["metrics"]["acc5"] == pytest.approx(100 * top5, abs=1e-4)
    assert 0 < top5 < 1  # else the comparison would show nothing
    assert record["dataset"] == "imagenet val, 32 px, 80 prompts"
    assert (record["table"], record["row"], record["n_images"]) == ("zero_shot_cls", "A", 17)
    assert record["config"]["pooling"]["pool"] == ("last" if pool else "host")


def test_synonyms_by_hand(here, capsys):
    """Every image alone in float64: a class scores what its best name does; per-class numbers and their mean."""
    folders = sorted(path.name for path in Path("shapes").iterdir())
    names = [folder.replace("_", " ") for folder in folders]
    names[2] += "; something round; thing"
    names[5] += ";a circle"
    Path("names.txt").write_text("\n".join(names) + "\n")
    templates = ("a {}.", "many {}")
    Path("templates.txt").write_text("\n".join(templates))
    arguments = ["--images", "shapes", "--class-names", "names.txt", "--templates", "templates.txt"]
    arguments += ["--model", "A=open_clip:clip_tiny.json@clip_tiny.pt", "--model", "B=open_clip:other.json@other.pt"]
    eval_zero_shot_cls.main([*arguments, *CPU, "--per-class", "out/classes.csv", "--dataset-name", "Shapes"])
    with open("out/classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["A"] * 7 + ["B"] * 7
    assert rows[2]["names"] == names[2]
    transform = open_clip.image_transform(32, is_train=False)
    for seed, label in ((0, "A"), (1, "B")):
        model, tokenizer = tiny_clip(seed).double(), tiny_tokenizer()
        hits, counts = torch.zeros(7, 2), torch.zeros(7)
        with torch.no_grad():
            text = []
            for line in names:
                own = []
                for name in line.split(";"):
                    rows_of = [
                        model.encode_text(tokenizer([t.replace("{}", name.strip())]), True)[0] for t in templates
                    ]
                    own.append(torch.stack(rows_of).mean(dim=0))
                text.append([vector / vector.norm() for vector in own])
            for number, folder in enumerate(folders):
                for path in sorted(Path("shapes", folder).iterdir()):
                    image = transform(Image.open(path))[None].double()
                    vector = model.encode_image(image, normalize=True)[0]
                    scores = torch.tensor([max(float(vector @ each) for each in own) for own in text])
                    ranked = scores.argsort(descending=True).tolist()
                    hits[number] += torch.tensor([ranked[0] == number, number in ranked[:5]])
                    counts[number] += 1
        record = results()[f"zero_shot_cls_{label}"]
        assert record["metrics"]["acc1"] == pytest.approx(100 * float(hits[:, 0].sum()) / 17, abs=1e-4)
        assert record["metrics"]["acc5"] == pytest.approx(100 * float(hits[:, 1].sum()) / 17, abs=1e-4)
        assert record["metrics"]["class_mean_acc1"] == pytest.approx(
            float(100 * (hits[:, 0] / counts).mean()), abs=1e-4
        )
        assert record["config"]["num_class_names"] == 10
        assert record["config"]["templates"] == list(templates)
        own_rows = [row for row in rows if row["model"] == label]
        assert [float(row["acc1"]) for row in own_rows] == pytest.approx((100 * hits[:, 0] / counts).tolist())
        assert [int(row["images"]) for row in own_rows] == counts.tolist()
        assert [row["folder"] for row in own_rows] == folders
    printed = capsys.readouterr().out
    assert "17 images, 7 classes" in printed
    assert "pooling pool=host" in printed


def test_folder_names_as_class_names(here):
    model = ["--model", "A=open_clip:clip_tiny.json@clip_tiny.pt"]
    eval_zero_shot_cls.main(["--images", "shapes", "--class-names", "folders", *model, *CPU, "--templates", "{}"])
    (record,) = results().values()
    names = [path.name.replace("_", " ") for path in sorted(Path("shapes").iterdir())]
    assert record["config"]["class_names"] == "folders"
    assert record["dataset"].endswith("shapes, 32 px, prompt '{}'")
    text = encode_class_names(tiny_clip(), tiny_tokenizer(), names, read_templates("{}"))
    accuracy = ClassAccuracy(7)
    images = ImageFolder("shapes", open_clip.image_transform(32, is_train=False))
    with torch.no_grad():
        batch, labels = next(iter(DataLoader(images, batch_size=17)))
        accuracy.update(zero_shot_scores(tiny_clip().encode_image(batch), text, list(range(7))), labels)
    expected = {key: round(value, 4) for key, value in accuracy.compute().items() if key != "num_images"}
    assert record["metrics"] == expected


def test_two_processes_count_every_image_once(here):
    model = ("--model", "A=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=0.25")
    eval_zero_shot_cls.main(["--imagenet-root", "imagenet", *model, *CPU, "--no-text-cache", "--per-class", "one.csv"])
    (alone,) = results().values()
    shutil.rmtree("output")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command = [*launcher, str(REPO / "clip" / "eval_zero_shot_cls.py"), "--imagenet-root", "imagenet", *model, *CPU]
    done = subprocess.run(
        [*command, "--per-class", "two.csv"],
        env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(here)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (shared,) = results().values()
    assert (shared["num_processes"], shared["n_images"]) == (2, 17)
    assert shared["metrics"] == alone["metrics"]
    assert Path("one.csv").read_text() == Path("two.csv").read_text()
    assert len(list(Path("cache").glob("*.safetensors"))) == 1


def test_broken_images_stop_or_are_counted(here, capsys):
    broken = next(Path("shapes").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = ["--images", "shapes", "--class-names", "folders", "--templates", "{}", *CPU]
    arguments += ["--model", "open_clip:clip_tiny.json@clip_tiny.pt"]
    assert str(broken) in stop(capsys, *arguments)
    eval_zero_shot_cls.main([*arguments, "--skip-broken"])
    assert "left out: 1 broken image" in capsys.readouterr().out
    assert next(iter(results().values()))["n_images"] == 16


def test_errors_are_one_line(here, capsys):
    model = ["--model", "open_clip:clip_tiny.json@clip_tiny.pt"]
    found = stop(capsys, "--images", "shapes", *model, *CPU)
    assert "what to call the classes must be said" in found
    assert "no folder" in stop(capsys, "--images", "nowhere", *model, *CPU)
    assert "nowhere" in stop(capsys, "--imagenet-root", "nowhere", *model, *CPU)
    assert "a CLIP" in stop(capsys, "--imagenet-root", "imagenet", "--model", "torchvision:vit_b_16@random", *CPU)
    assert "no weights" in stop(capsys, "--imagenet-root", "imagenet", "--model", "open_clip:ViT-B-32", *CPU)
    too_many = ["--model", "A=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=17"]
    found = stop(capsys, "--imagenet-root", "imagenet", *too_many, *CPU)
    assert "model 'A'" in found
    assert "17" in found
    assert not Path("cache").exists()  # known before any text was encoded
    Path("names.txt").write_text("a\nb\n")
    found = stop(capsys, "--images", "shapes", "--class-names", "names.txt", *model, *CPU)
    assert "names 2 classes, the data has 7" in found
    assert not results()


def test_half_precision_weights(here):
    eval_zero_shot_cls.main(
        [
            "--imagenet-root",
            "imagenet",
            "--model",
            "A=open_clip:clip_tiny.json@clip_tiny.pt",
            *CPU,
            "--precision",
            "bf16",
        ]
    )
    (record,) = results().values()
    assert record["config"]["precision"] == "bf16"


def test_help_needs_no_torch():
    block = (
        "import sys; sys.modules.update(torch=None, open_clip=None, numpy=None); import runpy; sys.argv=['x', '-h'];"
    )
    code = f"{block} runpy.run_path({str(REPO / 'clip/eval_zero_shot_cls.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", f"sys_path = {str(REPO / 'clip')!r}; import sys; sys.path[:0] = [sys_path]; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "--class-names" in done.stdout


def test_class_accuracy_against_a_count_by_hand():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 9, generator=generator), torch.randint(8, (60,), generator=generator)
    accuracy = ClassAccuracy(9, ks=(1, 3))
    for start in range(0, 60, 7):
        accuracy.update(logits[start : start + 7], labels[start : start + 7])
    ranked = logits.argsort(dim=1, descending=True)
    rows = accuracy.per_class()
    for label in range(9):
        own = [ranked[i].tolist() for i in range(60) if labels[i] == label]
        assert rows[label]["images"] == len(own)
        for k in (1, 3):
            expected = 100 * sum(label in each[:k] for each in own) / len(own) if own else None
            assert rows[label][f"acc{k}"] == (None if expected is None else pytest.approx(expected))
    assert rows[8] == {"images": 0, "acc1": None, "acc3": None}
    found = accuracy.compute()
    assert found["class_mean_acc3"] == pytest.approx(sum(row["acc3"] for row in rows[:8]) / 8)
    assert found["acc1"] == pytest.approx(100 * float((ranked[:, 0] == labels).float().mean()))
    assert found["num_images"] == 60


@pytest.mark.parametrize("flags", [(), ("--model", "A=open_clip:clip_tiny.json@clip_tiny.pt")])
def test_shell_script(here, flags):
    """Left-out weights are named; a --model of one's own is enough; another set than ImageNet-1k is refused."""
    script = str(REPO / "tools/eval_zero_shot_imagenet.sh")

    def call(*arguments):
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "RUN": sys.executable, "HOME": str(here)}
        return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment, timeout=240)

    assert "has 7 classes, ImageNet-1k has 1000" in call("imagenet", *flags).stderr
    assert "no folder nowhere" in call("nowhere", *flags).stderr
    assert call(*flags).returncode == 2
    image = next(Path("imagenet/val").rglob("*.png"))
    for wnid in imagenet_wnids()[7:]:
        (Path("imagenet/val") / wnid).mkdir()
        shutil.copy(image, Path("imagenet/val") / wnid)
    done = call("imagenet", *flags, *CPU[:2], "--num-workers", "0", "--templates", "{}")
    assert done.stdout.count("left out: weights/") == 10
    if not flags:
        assert done.returncode == 1
        assert "no weights in weights and no --model" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (record,) = results().values()
    assert record["dataset"] == "ImageNet-1k val, 32 px, prompt '{}'"
    assert record["config"]["num_classes"] == 1000
