"""point_in_box_table.py: its rows are evaluate_patch_hit.py's, on every kind of image set; mistakes show early."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate_patch_hit
import point_in_box_table
import pytest
import timm
import torch

import last_vit.patch_hit
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet
from last_vit.data.transforms import EvalTransform
from last_vit.layer_tokens import layer_tokens
from last_vit.metrics.patch_norms import PatchNorms, token_norms
from last_vit.models import load_trained_model
from last_vit.results import read_results

SCRIPT = Path(point_in_box_table.__file__)
SMALL = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "3"]
COUNT, CLASSES = 8, 3
VIT, RESNET = "ViT=timm:test_vit@vit.pth", "ResNet=timm:test_resnet@random"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """ImageNet and COCO of 8 images, one of them with two objects, and the weights of a ViT with 3 classes."""
    root = tmp_path_factory.mktemp("table")
    samples = SyntheticObjects(COUNT, "val", image_size=48, num_classes=CLASSES)
    write_imagenet(samples, root / "imagenet")
    write_coco(samples, root / "coco")
    xml = sorted((root / "imagenet/Annotations/CLS-LOC/val").glob("*.xml"))[2]
    text = xml.read_text()
    start, stop = text.index("<object>"), text.index("</annotation>")
    xml.write_text(text[:stop] + text[start:stop] + text[stop:])
    instances = root / "coco/annotations/instances_val2017.json"
    content = json.loads(instances.read_text())
    content["annotations"].append({**content["annotations"][2], "id": 999})
    instances.write_text(json.dumps(content))
    torch.manual_seed(1)
    torch.save(timm.create_model("test_vit", num_classes=CLASSES, img_size=64).state_dict(), root / "vit.pth")
    return root


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns the records by row of the table."""
    monkeypatch.chdir(tmp_path)
    for name in ("imagenet", "coco", "vit.pth"):
        Path(name).symlink_to(written / name)

    def call(*arguments: str, models: tuple[str, ...] = (VIT,), images=("--imagenet-root", "imagenet")) -> dict:
        shutil.rmtree("results", ignore_errors=True)
        chosen = [part for model in models for part in ("--model", model)]
        point_in_box_table.main([*chosen, *images, "--max-box-area", "none", *SMALL, "--table", *arguments])
        return {record.row: record for record in read_results(Path("results")) if record.table == "point_in_box"}

    return call


def test_a_row_is_that_of_the_single_command(run):
    """Same data set words, same numbers; the table adds the norms."""
    single = [
        "--model",
        "timm:test_vit",
        "--checkpoint",
        "vit.pth",
        "--imagenet-root",
        "imagenet",
        "--output",
        "single",
    ]
    for protocol in ([], ["--global-token", "last"], ["--hit-rule", "center", "--global-token", "mean"]):
        evaluate_patch_hit.main([*single, "--max-box-area", "none", *SMALL, *protocol])
        expected = json.loads(Path("results/single.json").read_text())
        record = run(*protocol)["ViT"]
        assert record.dataset == expected["dataset"]
        assert record.n_images == expected["n_images"] == COUNT - 1
        assert {key: record.metrics[key] for key in expected["metrics"]} == expected["metrics"]
        assert record.metrics.keys() - expected["metrics"].keys() == {"outlier_share", "high_norm"}
        for key in ("global_token", "hit_rule", "max_box_area", "left_out", "resize", "crop", "pooling"):
            assert record.config[key] == expected["config"][key]


def test_norms_are_those_of_the_images_that_count(run):
    record = run()["ViT"]
    trained = load_trained_model("timm:test_vit", "vit.pth", image_size=64, resize=72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = ImageNetDataset("imagenet", "val", transform, boxes=True, single_object=True)
    norms = PatchNorms()
    with torch.no_grad():
        for sample in images:
            norms.update(token_norms(layer_tokens(trained.model, sample["image"][None]).layers[-1]))
            if sample["index"] == len(images) - 1:
                break
    expected = norms.compute()
    assert record.metrics["outlier_share"] == pytest.approx(expected["outlier_share"], abs=1e-4)
    assert record.metrics["high_norm"] == expected["high_norm"]
    assert record.config["norm_cutoff"] == pytest.approx(expected["cutoff"])


def test_a_folder_with_boxes_gives_the_same_as_imagenets_layout(run):
    by_layout = run(models=(VIT, RESNET))
    xml = ("--images", "imagenet/val", "--boxes", "imagenet/Annotations/CLS-LOC/val")
    by_folder = run("--dataset-name", "folder", models=(VIT, RESNET), images=xml)
    for name, record in by_folder.items():
        theirs = by_layout[name]
        assert record.metrics == {key: value for key, value in theirs.metrics.items() if not key.startswith("acc")}
        assert record.n_images == theirs.n_images
        assert record.dataset == theirs.dataset.replace("imagenet val", "folder")
        assert record.config["left_out"] == {"several objects": 1}
    assert "acc1" in by_layout["ViT"].metrics
    assert "acc1" not in by_layout["ResNet"].metrics  # random weights have no label set


def test_coco_without_its_images_of_several_objects(run, capsys):
    coco = ("--images", "coco/val2017", "--boxes", "coco/annotations/instances_val2017.json")
    record = run(images=coco)["ViT"]
    assert record.n_images == COUNT - 1
    assert record.dataset == "coco/val2017, 64 px, any box, release rule, trained token"
    assert "left out: 1 several objects" in capsys.readouterr().out


def test_large_boxes_are_left_out_and_counted(run):
    xml = ("--images", "imagenet/val", "--boxes", "imagenet/Annotations/CLS-LOC/val")
    counts = [run("--max-box-area", "0.2", images=images)["ViT"] for images in (xml, ("--imagenet-root", "imagenet"))]
    assert counts[0].config["left_out"] == counts[1].config["left_out"]
    assert counts[0].config["left_out"]["large box"] + counts[0].n_images == COUNT - 1


def test_one_pass_per_model(run, monkeypatch):
    calls = []
    read = last_vit.patch_hit.layer_tokens
    monkeypatch.setattr(last_vit.patch_hit, "layer_tokens", lambda *args: calls.append(len(args[1])) or read(*args))
    monkeypatch.setattr(last_vit.patch_hit, "dense_forward", None)
    run(models=(VIT, RESNET))
    assert calls == [3, 3, 1] * 2


def test_printed_table(run, capsys):
    run(models=(VIT, RESNET))
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    titles = ["model", "high norm", "outliers %", "PiB", "random patch", "image centre", "top-1", "images"]
    assert cells[0] == titles
    assert [row[0] for row in cells[2:]] == ["ViT", "ResNet"]
    assert [row[6] == "-" for row in cells[2:]] == [False, True]
    assert {len(line) for line in lines[:4]} == {len(lines[0])}
    assert lines[4] == "imagenet val, any box, release rule, trained token; percent; left out: 1 several objects"


def test_cells_by_hand():
    rows = {"A": {"high_norm": 1, "outlier_share": 2.371, "point_in_box": 42.7, "num_images": 12345}, "B": {}}
    assert point_in_box_table.table_lines(rows) == [
        "| model | high norm | outliers % |   PiB | images |",
        "| ----- | --------: | ---------: | ----: | -----: |",
        "| A     |       yes |       2.37 | 42.70 | 12,345 |",
        "| B     |         - |          - |     - |      - |",
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--global-token", "cls"], "model 'ResNet': this model has no class token"),
        (["--model", "gone=timm:test_vit@gone.pth"], "model 'gone': no checkpoint file"),
        (["--model", "big=timm:test_vit@vit.pth,pool=last,top_k=17"], "model 'big': top_k must be in [1, 16]"),
        (["--model", "ViT=timm:test_vit@random"], "two models are called 'ViT'"),
        (["--boxes", "coco"], "go with --images"),
        (["--max-box-area", "0.0001"], "no image"),
        (["--imagenet-root", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_stops_before_anything_is_measured(run, capsys, arguments, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, models=(VIT, RESNET))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert match in captured.err
    assert "Traceback" not in captured.err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (("--images", "imagenet/val"), "give their boxes"),
        (("--images", "imagenet/val", "--imagenet-label-dir", "imagenet"), "goes with --imagenet-root"),
        (("--images", "imagenet/val", "--boxes", "coco/annotations/instances_val2017.json"), "do they belong together"),
        (("--images", "empty", "--boxes", "imagenet/Annotations"), "no image in empty"),
    ],
)
def test_mistakes_with_a_folder(run, capsys, images, match):
    Path("empty").mkdir()
    with pytest.raises(SystemExit):
        run(images=images)
    assert match in capsys.readouterr().err


def test_no_single_object_left(run, capsys):
    with pytest.raises(SystemExit):
        run("--max-box-area", "0.0001", images=("--images", "imagenet/val", "--boxes", "imagenet/Annotations"))
    assert "no image of imagenet/val has exactly one object" in capsys.readouterr().err


def test_torchrun_counts_every_image_once(run, written):
    alone = run(models=(VIT, RESNET))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = ["--model", VIT, "--model", RESNET, "--imagenet-root", "imagenet", "--max-box-area", "none"]
    subprocess.run(
        [*launcher, str(SCRIPT), *arguments, *SMALL, "--output", "two"],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=240,
    )
    two = [record for record in read_results(Path("results")) if record.num_processes == 2]
    assert len(two) == 2
    for record in two:
        theirs = next(each for each in alone.values() if each.config["model"] == record.config["model"])
        assert record.metrics == theirs.metrics
        assert record.n_images == COUNT - 1


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert "--max-box-area" in done.stdout
    assert done.stdout.endswith("False\n")
