"""probe_masking.py end to end on a small ImageNet: what it prints, writes and draws, and the models that it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import probe_masking
import pytest
import torch
from masking import choose_patches, mask_patches, random_scores
from PIL import Image
from score_figures import MaskingView, draw_masking

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

SCRIPT = Path(probe_masking.__file__)
VIT = "ViT=timm:test_vit@vit.pth"
SMALL = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """14 images of 3 classes, without boxes."""
    root = tmp_path_factory.mktemp("mini")
    rng = np.random.default_rng(0)
    for label, count in enumerate((6, 5, 3)):
        folder = root / "val" / f"n0{label}"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (70 + 5 * i, 90 - 3 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ViT of 3 classes, whose answers differ between images, and a bare ResNet."""
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=3, img_size=64)
    torch.nn.init.normal_(vit.head.weight)
    torch.save(vit.state_dict(), folder / "vit.pth")
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), folder / "bare.pth")
    return folder


@pytest.fixture
def run(imagenet, weights, tmp_path, monkeypatch):
    """Call the script in an empty folder with weights; returns the only record."""
    monkeypatch.chdir(tmp_path)
    for path in weights.iterdir():
        Path(path.name).symlink_to(path)

    def call(*arguments: str, models: tuple[str, ...] = (VIT,)) -> dict:
        chosen = [part for model in models for part in ("--model", model)]
        root = [] if "--imagenet-root" in arguments else ["--imagenet-root", str(imagenet)]
        probe_masking.main([*chosen, *root, *SMALL, *arguments])
        records = [json.loads(path.read_text()) for path in sorted(Path("results").glob("*.json"))]
        return records[0]

    return call


def by_hand(imagenet: Path, seed: int) -> dict[str, float]:
    """Top-1 with nothing and with half of the 16 patches masked, image by image."""
    trained = parse_model_argument(VIT).load(64, 72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    hits = {"top1": [], "top1_top_50": [], "top1_bottom_50": [], "top1_random_50": []}
    for sample in ImageNetDataset(imagenet, "val", transform):
        image = sample["image"][None]
        with torch.no_grad():
            out = dense_forward(trained.model, image)
            score, noise = patch_score(out.patch_tokens, out.global_token), random_scores([sample["index"]], 16, seed)
            masks = {
                "top1": torch.zeros(1, 16, dtype=torch.bool),
                "top1_top_50": choose_patches(score, 0.5, "top"),
                "top1_bottom_50": choose_patches(score, 0.5, "bottom"),
                "top1_random_50": choose_patches(noise, 0.5),
            }
            for name, mask in masks.items():
                answer = int(trained.model(mask_patches(image, mask, (4, 4))).argmax())
                hits[name].append(answer == sample["label"])
    return {name: 100 * np.mean(values) for name, values in hits.items()}


def test_numbers_against_a_computation_by_hand(run, imagenet, capsys):
    record = run("--shares", "50", "--seed", "2", "--batch-size", "4")
    assert record["metrics"] == pytest.approx(by_hand(imagenet, 2), abs=1e-3)
    assert record["n_images"] == 14
    assert record["dataset"] == f"{imagenet.name} val, 64 px, trained token"
    assert record["name"] == f"masking_probe_ViT_{imagenet.name}_val"
    assert (record["config"]["seed"], record["config"]["num_images"], record["table"]) == (2, None, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "masked", "0", "%", "50", "%"]
    whole, top = (f"{record['metrics'][name]:.1f}" for name in ("top1", "top1_top_50"))
    assert lines[1].split() == ["ViT", "top", whole, top]
    assert [line.split()[1] for line in lines[1:4]] == ["top", "bottom", "random"]
    assert lines[4] == f"top-1 in percent, 14 of 14 images of {imagenet.name} val"
    assert lines[5] == "written results/masking_probe.png"


def test_nothing_depends_on_the_batch_size(run):
    shares = ["--shares", "90", "30", "60"]
    one, many = (run(*shares, "--batch-size", size)["metrics"] for size in ("1", "32"))
    assert one == many
    assert list(many) == ["top1", *(f"top1_{c}_{p}" for c in ("top", "bottom", "random") for p in (30, 60, 90))]


def test_number_of_images_is_recorded_and_masks_stay_with_the_image(run):
    record = run("--shares", "50", "--num-images", "6", "--table", "--dataset-name", "Mini")
    assert (record["n_images"], record["config"]["num_images"]) == (6, 6)
    assert record["dataset"] == "Mini val, 64 px, 6 images by seed 0, trained token"
    assert (record["table"], record["row"]) == ("masking_probe", "ViT")


def test_two_models_one_picture(run):
    token = ["--global-token", "mean"]
    run("--shares", "20", "80", "--figure", "out/m.png", *token, models=(VIT, "K=1=timm:test_vit@vit.pth,pool=last"))
    assert len(list(Path("results").glob("*.json"))) == 2
    wide = Image.open("out/m.png").size
    assert wide[0] > 2 * wide[1] - 300


def test_the_picture_shows_what_it_is_given():
    stats = {"top1": 80.0, **{f"top1_{c}_{p}": 80.0 - p / 2 for c in ("top", "random") for p in (20, 60)}}
    stats |= {"top1_bottom_20": 33.0, "top1_bottom_60": 22.0}
    figure = draw_masking([MaskingView(name, stats, (20, 60), 10) for name in ("A", "B")])
    assert [axes.get_title() for axes in figure.axes] == ["A", "B"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert lines["worst-scoring patches masked"].get_xdata().tolist() == [0, 20, 60]
    assert lines["worst-scoring patches masked"].get_ydata().tolist() == [80, 33, 22]
    assert lines["best-scoring patches masked"].get_ydata().tolist() == [80, 70, 50]
    assert lines["chance"].get_ydata()[0] == 10
    assert len(figure.legends[0].texts) == 4


def test_drawn_images_are_spread_over_the_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))
    for num_images in (1, 10, 50, 73, 200):
        chosen = probe_masking.spread_over_classes(labels, num_images, seed=1)
        counts = np.bincount(labels[chosen], minlength=10)
        assert len(set(chosen)) == num_images
        assert chosen == sorted(chosen)
        assert counts.max() - counts.min() <= 1
    assert probe_masking.spread_over_classes(labels, 50, seed=1) == probe_masking.spread_over_classes(labels, 50, 1)
    assert probe_masking.spread_over_classes(labels, 50, seed=2) != probe_masking.spread_over_classes(labels, 50, 1)
    few = np.array([4, 4, 4, 4, 9])
    assert np.bincount(few[probe_masking.spread_over_classes(few, 4, seed=0)]).tolist() == [
        0,
        0,
        0,
        0,
        3,
        0,
        0,
        0,
        0,
        1,
    ]


def test_torchrun_counts_every_image_once_with_the_same_masks(run, imagenet):
    alone = run("--shares", "50")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    arguments = ["--model", VIT, "--imagenet-root", str(imagenet), *SMALL, "--shares", "50", "--batch-size", "3"]
    subprocess.run(
        [*launcher, str(SCRIPT), *arguments, "--output", "a_two"],
        check=True,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=240,
    )
    two = json.loads(next(Path("results").glob("a_two*.json")).read_text())
    assert (two["n_images"], two["num_processes"]) == (14, 2)
    assert two["metrics"] == alone["metrics"]


@pytest.mark.parametrize(
    ("arguments", "models", "match"),
    [
        ((), ("timm:test_vit@random",), "answers with 1000 numbers, the images have 3 classes"),
        ((), (VIT, "R=timm:test_resnet@bare.pth"), "model 'R': its weights hold no classifier, and the 3 classes"),
        (("--imagenet-root", "two"), (VIT,), "model 'ViT': its classifier has 3 classes, and the 2 classes"),
        (("--global-token", "cls"), ("R=timm:test_resnet@random",), "model 'R': this model has no class token"),
        (("--shares", "50", "100"), (VIT,), "different numbers in [1, 99], got [50, 100]"),
        (("--shares", "50", "50"), (VIT,), "different numbers in [1, 99], got [50, 50]"),
        (("--num-images", "15"), (VIT,), "--num-images must be at most 14 (images), got 15"),
        (("--imagenet-root", "nowhere"), (VIT,), "nowhere"),
        (("--imagenet-root", "broken"), (VIT,), "0.png"),
        ((), ("X=timm:test_vit@missing.pth",), "missing.pth"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, arguments, models, match):
    for root in ("two", "broken"):
        for name in ("n00", "n01"):
            (Path(root) / "val" / name).mkdir(parents=True)
            Image.new("RGB", (80, 80)).save(f"{root}/val/{name}/0.png")
    Path("broken/val/n00/0.png").write_bytes(b"no image")
    Path("broken/val/n02").mkdir()
    Image.new("RGB", (80, 80)).save("broken/val/n02/0.png")
    with pytest.raises(SystemExit) as stop:
        run(*arguments, models=models)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("probe_masking.py: error: ")
    assert match in lines[0]
    assert not Path("results").exists()


def test_a_clip_tower_is_no_classifier():
    """Refused by its spec, before anything of it is loaded again."""
    argument = parse_model_argument("CLIP=open_clip:ViT-B-16@clip.pt")
    args = probe_masking.build_parser().parse_args(["--model", "x", "--imagenet-root", "root"])
    with pytest.raises(ValueError, match="model 'CLIP': a CLIP tower answers with an embedding, and the 100 classes"):
        probe_masking.check_classifier(argument, args, 100)


def test_negative_seeds_are_refused(capsys):
    with pytest.raises(SystemExit):
        probe_masking.build_parser().parse_args(["--model", "x", "--imagenet-root", "root", "--seed", "-1"])
    assert "must not be negative, got -1" in capsys.readouterr().err


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--shares" in done.stdout
    assert done.stdout.endswith("False\n")
