"""Coarse segmentation from the command line, on synthetic VOC: numbers, records, batch sizes and errors."""

import json
import os
import subprocess
from pathlib import Path

import eval_coarse_segmentation as script
import pytest
import torch
import torchvision
from coarse_seg import CoarseSegmentation
from segmentation_images import SegmentationImages

from last_vit import results
from last_vit.data.synthetic import SyntheticObjects, write_voc
from last_vit.data.voc import VocSplit
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

MODEL = "ViT=dino:vit_tiny/16@random"


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc(SyntheticObjects(7, "val", image_size=48, num_classes=3, seed=0), root)
    return next(root.rglob("JPEGImages")).parent


@pytest.fixture
def run(voc_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(
        results.write_result,
        "__kwdefaults__",
        {**results.write_result.__kwdefaults__, "directory": tmp_path / "results"},
    )

    def call(*flags):
        arguments = ["--voc-root", str(voc_root), "--image-size", "64", "--num-workers", "0", "--device", "cpu", *flags]
        script.main(arguments)
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}

    return call


def test_the_papers_rule_is_scored_pixel_by_pixel(run, voc_root):
    """The record equals a plain pass: squeeze, score above its mean, nearest patch, Jaccard."""
    found = run("--model", MODEL, "--protocol", "union")
    record = found[f"coarse_seg_ViT_score_union_{voc_root.name}"]
    trained = parse_model_argument(MODEL).load(image_size=64)
    prep = trained.preprocessing
    images = SegmentationImages(VocSplit(voc_root, "val", "Segmentation"), 64, prep.mean, prep.std, prep.interpolation)
    metric = CoarseSegmentation("union")
    for index in range(len(images)):
        with torch.inference_mode():
            output = dense_forward(trained.model, images[index]["image"][None])
        score = patch_score(output.patch_tokens, output.global_token)[0].reshape(output.grid_hw)
        class_mask, object_mask = images.masks(index)
        height, width = class_mask.shape
        rows = (torch.arange(height) + 0.5).mul(output.grid_hw[0] / height).long()
        columns = (torch.arange(width) + 0.5).mul(output.grid_hw[1] / width).long()
        metric.update((score > score.mean())[rows][:, columns][None], class_mask, object_mask)
    assert record["metrics"]["miou"] == pytest.approx(metric.compute()["miou"], abs=1e-3)
    assert record["n_images"] == 7
    assert record["dataset"] == f"{voc_root.name} val, 64 px, union, trained token"


def test_results_do_not_depend_on_the_batch_size(run):
    flags = ("--model", MODEL, "--rule", "score", "attention", "--table")
    one, all_at_once = run(*flags, "--batch-size", "1"), run(*flags, "--batch-size", "7")
    assert len(one) == 6
    for name, record in one.items():
        assert record["metrics"] == all_at_once[name]["metrics"]
    assert {record["row"] for record in one.values()} == {"ViT, score", "ViT, attention"}
    by_object = one[next(name for name in one if "attention_object" in name)]
    assert by_object["dataset"].endswith("object, attention mass 0.6, best head")


def test_label_supervised_models_work_too(run, tmp_path):
    vit = torchvision.models.VisionTransformer(64, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    (tmp_path / "vit.py").write_text(
        "from detectron2.config import LazyCall as L\nfrom torchvision.models import VisionTransformer\n"
        "model = L(VisionTransformer)(image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, "
        "mlp_dim=32)\n"
    )
    found = run("--model", f"A={tmp_path / 'vit.py'}@{tmp_path / 'vit.pth'}", "--rule", "score", "attention")
    assert len(found) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "A=torchvision:resnet18@random", "--rule", "attention"), "attention"),
        (("--model", MODEL, "--rule", "attention", "--mass", "1.5"), "mass is a share"),
        (("--model", MODEL, "--voc-split", "test"), "test"),
    ],
)
def test_errors_are_one_line(run, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("eval_coarse_segmentation.py: error: ")


def test_the_script_for_voc12(tmp_path):
    """It refuses what is not VOC 2012 val, and becomes one command."""
    path = Path(script.__file__).resolve().parents[1] / "tools" / "eval_coarse_seg_voc12.sh"
    voc = tmp_path / "VOC2012"

    def call(*arguments):
        environment = {"PATH": os.environ["PATH"], "RUN": "echo"}
        return subprocess.run(["bash", str(path), *arguments], env=environment, capture_output=True, text=True)

    for arguments, message in (((), "first argument"), ((str(voc),), "unpack VOCtrainval")):
        assert (call(*arguments).returncode, message in call(*arguments).stderr) == (2, True)
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n" * 7)
    assert "names 7 images, VOC 2012 val has 1449" in call(str(voc)).stderr
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n" * 1449)
    done = call(str(voc), "--model", "A=dino:vit_small/16@w.pth")
    assert done.returncode == 0
    assert done.stdout.endswith("--rule score attention --model A=dino:vit_small/16@w.pth\n")
