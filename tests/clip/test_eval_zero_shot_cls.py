"""Zero-shot classification: open_clip's own evaluation as the reference, by hand with synonyms, under torchrun."""

import argparse
import csv
import shutil
from pathlib import Path

import eval_zero_shot_cls
import open_clip
import pytest
import torch
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from clip_train_seams import _top_k_counts
from open_clip_train import zero_shot
from PIL import Image
from record_parts import read_records
from script_parts import run_two
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from last_vit.data.synthetic import SyntheticObjects
from last_vit.dense import attach_last
from last_vit.names import imagenet_synsets

WNIDS = imagenet_synsets()[:7]
MODEL = "open_clip:clip_tiny.json@clip_tiny.pt"
CPU = ("--device", "cpu", "--num-workers", "0", "--batch-size", "5", "--text-cache", "cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A CLIP and 17 drawn images of seven classes, in ImageNet's layout and as a plain folder, of odd shapes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_clip(tmp_path)
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
    """Records by the first words of their names."""
    return {record["name"].partition("-")[0]: record for record in read_records()}


def test_equals_open_clips_evaluation(here, monkeypatch):
    """Its classifier, its loop, its transform, on the same model with the same read-out; bfloat16 is near it.

    Its `accuracy` turns one-element arrays into numbers, which numpy 2.4 refuses; train_clip.py's takes its place.
    """
    monkeypatch.setattr(zero_shot, "accuracy", _top_k_counts)
    flags = ["--imagenet-root", "imagenet", "--model", f"A={MODEL}", "--model", f"B={MODEL},pool=last,top_k=3", *CPU]
    eval_zero_shot_cls.main([*flags, "--table"])
    transform = open_clip.image_transform(32, is_train=False)
    loader = DataLoader(ImageFolder("imagenet/val", transform), batch_size=17)
    args = argparse.Namespace(device="cpu", precision="fp32", batch_size=17)
    names = [open_clip.IMAGENET_CLASSNAMES[index] for index in range(7)]
    for label, pool in (("A", "host"), ("B", "last")):
        model = tiny_clip() if pool == "host" else attach_last(tiny_clip(), 3)
        templates = open_clip.OPENAI_IMAGENET_TEMPLATES
        classifier = open_clip.build_zero_shot_classifier(model, tiny_tokenizer(), names, templates)
        model.output_dict = True
        top1, top5 = zero_shot.run(model, classifier, loader, args)
        record = results()[f"zero_shot_cls_{label}"]
        assert record["metrics"]["acc1"] == pytest.approx(100 * top1, abs=1e-4)
        assert record["metrics"]["acc5"] == pytest.approx(100 * top5, abs=1e-4)
        assert 0 < top5 < 1  # else the comparison would show nothing
        named = (record["dataset"], record["table"], record["row"], record["n_images"])
        assert named == ("imagenet val, 32 px, 80 prompts", "zero_shot_cls", label, 17)
        assert record["config"]["pooling"]["pool"] == pool
    eval_zero_shot_cls.main([*flags, "--precision", "bf16", "--output", "half"])
    assert results()["half_A"]["metrics"]["acc5"] == pytest.approx(
        results()["zero_shot_cls_A"]["metrics"]["acc5"], abs=20
    )


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
    arguments += ["--model", f"A={MODEL}", "--per-class", "out/classes.csv", "--dataset-name", "Shapes"]
    eval_zero_shot_cls.main([*arguments, *CPU])
    rows = list(csv.DictReader(Path("out/classes.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["A"] * 7
    assert rows[2]["names"] == names[2]
    transform = open_clip.image_transform(32, is_train=False)
    model, tokenizer = tiny_clip().double(), tiny_tokenizer()
    hits, counts = torch.zeros(7, 2), torch.zeros(7)
    with torch.no_grad():
        text = []
        for line in names:
            prompts = [[template.replace("{}", name.strip()) for template in templates] for name in line.split(";")]
            own = [torch.cat([model.encode_text(tokenizer([prompt]), True) for prompt in each]) for each in prompts]
            text.append([vectors.mean(dim=0) / vectors.mean(dim=0).norm() for vectors in own])
        for number, folder in enumerate(folders):
            for path in sorted(Path("shapes", folder).iterdir()):
                vector = model.encode_image(transform(Image.open(path))[None].double(), normalize=True)[0]
                scores = torch.tensor([max(float(vector @ each) for each in own) for own in text])
                ranked = scores.argsort(descending=True).tolist()
                hits[number] += torch.tensor([ranked[0] == number, number in ranked[:5]])
                counts[number] += 1
    record = results()["zero_shot_cls_A"]
    expected = {"acc1": hits[:, 0].sum() / 17, "acc5": hits[:, 1].sum() / 17}
    expected["class_mean_acc1"] = (hits[:, 0] / counts).mean()
    for key, value in expected.items():
        assert record["metrics"][key] == pytest.approx(100 * float(value), abs=1e-4)
    assert (record["config"]["num_class_names"], record["config"]["templates"]) == (10, list(templates))
    assert [float(row["acc1"]) for row in rows] == pytest.approx((100 * hits[:, 0] / counts).tolist())
    assert [int(row["images"]) for row in rows] == counts.tolist()
    assert [row["folder"] for row in rows] == folders
    assert "17 images, 7 classes" in capsys.readouterr().out


def test_two_processes_count_every_image_once(here):
    flags = ("--model", f"A={MODEL},pool=last,top_k=0.25", *CPU)
    eval_zero_shot_cls.main(["--imagenet-root", "imagenet", *flags, "--no-text-cache", "--per-class", "one.csv"])
    (alone,) = results().values()
    shutil.rmtree("output")
    words = ("--imagenet-root", "imagenet", *flags, "--per-class", "two.csv")
    run_two("clip/eval_zero_shot_cls.py", *words, HOME=str(here))
    (shared,) = results().values()
    assert (shared["num_processes"], shared["n_images"]) == (2, 17)
    assert shared["metrics"] == alone["metrics"]
    assert Path("one.csv").read_text() == Path("two.csv").read_text()
    assert len(list(Path("cache").glob("*.safetensors"))) == 1


def test_errors_are_one_line(here, capsys, refused):
    Path("names.txt").write_text("a\nb\n")
    imagenet, shapes, model = ("--imagenet-root", "imagenet"), ("--images", "shapes"), ("--model", MODEL)

    for flags, message in (
        ((*shapes, *model), "what to call the classes must be said"),
        (("--images", "nowhere", *model), "no folder"),
        (("--imagenet-root", "nowhere", *model), "nowhere"),
        ((*imagenet, "--model", "torchvision:vit_b_16@random"), "a CLIP"),
        ((*imagenet, "--model", "open_clip:ViT-B-32"), "no weights"),
        ((*imagenet, "--model", f"A={MODEL},pool=last,top_k=17"), "model 'A': top_k must be in [1, 16]"),
        ((*shapes, "--class-names", "names.txt", *model), "names 2 classes, the data has 7"),
    ):
        assert message in refused(eval_zero_shot_cls.main, *flags, *CPU)
    assert not Path("cache").exists()  # known before any text was encoded
    assert not results()
    broken = next(Path("shapes").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    flags = [*shapes, "--class-names", "folders", "--templates", "{}", *model, *CPU]
    assert str(broken) in refused(eval_zero_shot_cls.main, *flags)
    eval_zero_shot_cls.main([*flags, "--skip-broken"])
    assert "left out: 1 broken image" in capsys.readouterr().out
    (record,) = results().values()
    assert record["n_images"] == 16
    assert record["dataset"].endswith("shapes, 32 px, prompt '{}'")
