"""What all diagnostics promise: one line for every mistake, every image once over several processes."""

import shutil
from pathlib import Path

import compare_models
import evaluate_patch_hit
import make_report
import pytest
import timm
import torch
from diagnostic_parts import BOXES, FOLDER, IMAGENET, LAST, MASKS, RESNET, SIZE, SMALL, VIT, read_records
from PIL import Image
from script_parts import run_two

SCRIPTS = Path(compare_models.__file__).parent
MANY = ["--model", VIT, "--model", RESNET]


SHARED = """
from matplotlib.figure import Figure
from last_vit.runtime import process_group
Figure.savefig = lambda figure, path: None
with process_group("cpu"):
    for name, flags in {calls!r}:
        __import__(name).main(flags)
"""


def test_two_processes_count_every_image_once(call):
    """Each command alone and under torchrun; the votes of one image, of which one process sees none."""
    small = ["--model", LAST, *SMALL]
    calls = [
        ("evaluate_patch_hit", [*small, *IMAGENET, "--max-box-area", "none"]),
        ("probe_masking", [*small, *IMAGENET, "--shares", "50"]),
        ("visualize_norms", [*small, *MASKS, "--examples", "0"]),
        ("evaluate_layers", [*small, *IMAGENET, "--max-images", "5"]),
        ("visualize_patch_score_distribution", [*small, *MASKS]),
        ("visualize_pca", [*small, *MASKS, "--fit", "set", "--num-images", "2"]),
        ("visualize_token_selection", [*small, *MASKS, "--num-images", "1", "--seed", "3", "--k", "1", "0.5"]),
    ]
    for name, flags in calls:
        __import__(name).main(flags)
    alone = {(record["name"], record["dataset"]): record for record in read_records()}
    Path("shared.py").write_text(SHARED.format(calls=calls))
    run_two(Path("shared.py").resolve(), PYTHONPATH=f"{SCRIPTS}:{SCRIPTS.parent}")
    two = {(record["name"], record["dataset"]): record for record in read_records()}
    assert len(alone) == 8
    assert alone.keys() == two.keys()
    assert {record["num_processes"] for record in two.values()} == {2}
    for name, record in alone.items():
        assert two[name]["n_images"] == record["n_images"], name
        assert two[name]["metrics"] == pytest.approx(record["metrics"], abs=2e-4), name


COMPARE = [*SIZE, "--num-images", "2"]
CASES = {
    "compare_models": [
        ([*COMPARE, *IMAGENET, "--model", VIT, "--model", VIT], "two models are called 'ViT'"),
        ([*COMPARE, *IMAGENET, "--model", VIT, "--num-images", "7"], "must be in [0, 6]"),
        ([*COMPARE, *FOLDER, "--model", VIT, "--only", "1.png", "9.png"], "--only 9.png must be one of the 8 images"),
        ([*COMPARE, *IMAGENET, "--model", VIT, "--boxes", "masks"], "go with --images"),
        ([*COMPARE, *IMAGENET, "--model", VIT, *FOLDER], "not allowed with"),
        ([*COMPARE, *FOLDER, "--model", VIT, "--imagenet-label-dir", "x"], "goes with --imagenet-root"),
        ([*COMPARE, *IMAGENET, "--model", VIT, "--figure", "picture.doc"], "must end in one of .png, .pdf, .svg"),
    ],
    "evaluate_layers": [
        ([*SMALL, *FOLDER, "--model", VIT], "give --boxes or --masks"),
        ([*SMALL, *FOLDER, "--model", VIT, "--masks", "black"], "model 'ViT': no image shows both object and"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--top-k", "17"], "model 'ViT': top_k must be in [1, 16] (number of"),
    ],
    "evaluate_patch_hit": [
        ([*SMALL, *IMAGENET, *MANY, "--global-token", "cls"], "model 'ResNet': this model has no class token"),
        ([*SMALL, *IMAGENET, *MANY, "--model", "gone=timm:test_vit@gone.pth"], "model 'gone': no checkpoint file"),
        ([*SMALL, *IMAGENET, *MANY, "--model", f"big{LAST[4:].replace('=3', '=17')}"], "model 'big': top_k must be in"),
        ([*SMALL, *IMAGENET, *MANY, "--pool", "mean"], "go with one model"),
        ([*SMALL, *IMAGENET, "--model", "timm:test_vit@random", "--image-size", "72"], "size 16, got 72 pixels; near"),
        ([*SMALL, *IMAGENET, *MANY, "--checkpoint", "vit.pth"], "--checkpoint is for one --model that names no"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--max-box-area", "0.0001"], "no image"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--max-box-area", "2"], "or none; got 2"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--imagenet-meta", "meta.bin"], "it is not needed"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--device", "tpu"], "device must be"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--pool", "mean", "--top-k", "3"], "pool 'last'"),
        ([*SMALL, "--imagenet-root", "nowhere", "--model", VIT], "nowhere"),
        ([*SMALL, *FOLDER, "--model", VIT], "give their boxes"),
        ([*SMALL, *BOXES, "--model", VIT, "--max-box-area", "0.0001"], "no image of imagenet/val has exactly one"),
    ],
    "plot_dynamics": [
        ([], "one of the arguments --run --imagenet-root is required"),
        (["--run", "run", *IMAGENET], "not allowed with"),
        (["--run", "run", "--model", VIT], "belong together"),
        (["--model", RESNET, *IMAGENET], "give a folder of them, SPEC@FOLDER"),
        (["--model", "timm:test_vit@imagenet", *IMAGENET], "no checkpoint whose name ends in"),
        (["--model", "timm:test_vit@gone", *IMAGENET], "no folder gone"),
        (["--run", "gone"], "a run is given as [NAME=]FOLDER"),
    ],
    "probe_masking": [
        ([*SMALL, *IMAGENET, "--model", RESNET], "answers with 1000 numbers, the images have 3 classes"),
        ([*SMALL, *IMAGENET, "--model", "R=timm:test_resnet@bare.pth"], "model 'R': its weights hold no classifier"),
        ([*SMALL, "--imagenet-root", "two", "--model", VIT], "two/val has 2 classes, the classifier 3: which of its"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--shares", "50", "100"], "different numbers in [1, 99], got [50, 100]"),
        ([*SMALL, *IMAGENET, "--model", VIT, "--num-images", "9"], "--num-images must be at most 8 (images), got 9"),
        ([*SMALL, "--imagenet-root", "broken", "--model", VIT], "0.png"),
    ],
    "visualize_norms": [
        ([*SMALL, *MASKS, "--model", VIT, "--cutoff", "0"], "cutoff must be a norm between"),
        ([*SMALL, *MASKS, "--model", VIT, "--examples", "9"], "--examples must be in [0, 8]"),
    ],
    "visualize_patch_score_distribution": [
        ([*SMALL, *FOLDER, "--model", VIT], "give --boxes or --masks"),
        ([*SMALL, "--images", "empty", "--masks", "masks", "--model", VIT], "no image in empty"),
        ([*SMALL, *FOLDER, "--model", VIT, "--masks", "black"], "model 'ViT': no image shows both object and"),
    ],
    "visualize_pca": [
        ([*SMALL, *FOLDER, "--masks", "black", "--model", VIT], "model 'ViT': none of the 6 images has 3 foreground"),
        ([*SMALL, *FOLDER, "--masks", "black", "--model", VIT, "--fit", "set"], "at least 3 tokens"),
    ],
    "visualize_token_selection": [
        ([*SMALL, *FOLDER, "--model", VIT, "--k", "17"], "model 'ViT': top_k must be in [1, 16] (number of patches)"),
        ([*SMALL, *FOLDER, "--model", VIT, "--k", "8", "0.5"], "--k [8, 0.5] gives [8, 8] patches"),
        ([*SMALL, *FOLDER, "--model", VIT, "--k", "many"], "'many'"),
        ([*SMALL, "--model", VIT], "--imagenet-root is required"),
        ([*SMALL, "--imagenet-root", "empty", "--model", VIT], "has no such split"),
        ([*SMALL, *FOLDER, "--imagenet-label-dir", "x", "--model", VIT], "goes with --imagenet-root"),
    ],
    "visualize_votes": [
        ([*SIZE, *FOLDER, "--model", LAST.replace("=3", "=17")], "model 'LaSt': top_k must be in [1, 16]"),
    ],
    "make_report": [
        ([*SMALL, "--images", "nowhere", "--model", VIT], "nowhere"),
        ([*SMALL, *FOLDER, "--model", "timm:test_resnet@random,pool=last,top_k=26"], "top_k must be in [1, 4]"),
        ([*SMALL, *MASKS, "--model", VIT, "--boxes", "masks"], "not allowed with argument --masks"),
    ],
}


@pytest.fixture(scope="module")
def broken_sets(tmp_path_factory, diagnostic_root) -> Path:
    """What the mistakes need: masks without object, folders of two and of broken classes."""
    root = tmp_path_factory.mktemp("broken")
    (root / "black").mkdir()
    for path in (diagnostic_root / "masks").iterdir():
        Image.new("L", Image.open(path).size).save(root / "black" / path.name)
    for name, classes in (("two", "ab"), ("broken", "abc")):
        for label in classes:
            (root / name / "val" / label).mkdir(parents=True)
            Image.new("RGB", (80, 80)).save(root / name / "val" / label / "0.png")
    (root / "broken/val/a/0.png").write_bytes(b"no image")
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), root / "bare.pth")
    for name in ("empty", "run"):
        (root / name).mkdir()
    return root


@pytest.mark.parametrize(("name", "flags", "match"), [(name, *case) for name, cases in CASES.items() for case in cases])
def test_one_line_for_every_mistake(here, broken_sets, refused, name, flags, match):
    for path in broken_sets.iterdir():
        Path(path.name).symlink_to(path)
    assert match in refused(__import__(name).main, *flags).splitlines()[-1]
    assert not [path for path in ("results", "output", "report") if Path(path).exists()]


def test_a_worker_names_the_image_that_it_cannot_read(here, capsys):
    shutil.copytree("imagenet", "cut", symlinks=False)
    path = Path("cut/val/n02/2.png")
    path.write_bytes(path.read_bytes()[:-3000])
    for num_workers in ("0", "1"):
        with pytest.raises(SystemExit):
            evaluate_patch_hit.main(["--imagenet-root", "cut", "--model", VIT, *SMALL, "--num-workers", num_workers])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("evaluate_patch_hit.py: error: ")
        assert "2.png" in lines[0]


def test_one_page_is_made_by_one_process(here, monkeypatch, capsys):
    monkeypatch.setattr("report_page.world_size", lambda: 2)
    with pytest.raises(SystemExit):
        make_report.main([*FOLDER, *SMALL, "--model", VIT])
    assert "made by one process, not 2" in capsys.readouterr().err
