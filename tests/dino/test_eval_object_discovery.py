"""eval_object_discovery.py end to end on small VOC, COCO and ImageNet layouts, against loops over what it saved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import discovery_pictures
import eval_object_discovery
import pytest
import torch
from defusedxml import ElementTree
from PIL import Image

from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc

pytest.importorskip("timm")
SCRIPT = Path(eval_object_discovery.__file__)
NUMBER, SIDE = 9, 40
ANY_SIZE = "A=dino:vit_tiny/16@random,pool=last,top_k=0.5"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    samples = SyntheticObjects(NUMBER, "val", image_size=SIDE, num_classes=3)
    for write in (write_voc, write_coco, write_imagenet):
        write(samples, root / write.__name__.removeprefix("write_"))
    return root


@pytest.fixture
def run(sets, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns its records by method."""
    monkeypatch.chdir(tmp_path)
    layouts = {
        "voc": ["--voc-root", f"{sets}/voc", "--voc-split", "val"],
        "coco": [
            "--coco-images",
            f"{sets}/coco/val2017",
            "--coco-json",
            f"{sets}/coco/annotations/instances_val2017.json",
        ],
        "imagenet": ["--imagenet-root", f"{sets}/imagenet"],
        None: [],
    }

    def call(*arguments: str, layout: str | None = "voc", model: str = ANY_SIZE) -> dict[str, dict]:
        shutil.rmtree("results", ignore_errors=True)
        fixed = ["--model", model, "--num-workers", "0", "--device", "cpu"]
        eval_object_discovery.main([*fixed, *layouts[layout], *arguments])
        records = [json.loads(path.read_text()) for path in sorted(Path("results").glob("*.json"))]
        return {record["config"]["protocol"]: record for record in records}

    return call


def area(x1, y1, x2, y2):
    return max(0, x2 - x1) * max(0, y2 - y1)


def iou(a, b):
    inner = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return inner / (area(*a) + area(*b) - inner)


def test_all_methods_on_voc_against_a_loop(run, sets, capsys):
    methods = ["--method", "patch-score", "lost", "dino-seg", "tokencut", "--component", "peak", "largest", "all"]
    records = run(
        *methods, "--dino-seg-head", "1", "--save-boxes", "boxes.json", "--per-class", "--dataset-name", "small"
    )
    saved = json.loads(Path("boxes.json").read_text())["A"]
    names = ["patch-score, peak", "patch-score, largest", "patch-score, all", "lost", "dino-seg", "tokencut"]
    assert list(saved) == names
    objects = {}
    for path in (sets / "voc/VOC2012/Annotations").iterdir():
        corners = [float(e.text) for e in ElementTree.parse(path).find("object/bndbox")]
        objects[f"{path.stem}.jpg"] = [corners[0] - 1, corners[1] - 1, *corners[2:]]
    by_name = {r["name"].removeprefix("corloc_A_").removesuffix("_small"): r for r in records.values()}
    assert len(by_name) == len(names)
    for name in names:
        best = [iou(box, objects[image]) for image, box in saved[name].items()]
        record = by_name[name.replace(", ", "_")]
        assert len(best) == record["n_images"] == NUMBER
        assert record["metrics"]["mean_iou"] == pytest.approx(100 * sum(best) / NUMBER, abs=1e-3)
        assert record["metrics"]["corloc"] == pytest.approx(100 * sum(i >= 0.5 for i in best) / NUMBER, abs=1e-3)
        whole = [iou([0, 0, SIDE, SIDE], box) >= 0.5 for box in objects.values()]
        assert record["metrics"]["corloc_whole_image"] == pytest.approx(100 * sum(whole) / NUMBER, abs=1e-3)
        assert record["table"] is None
        assert {"fps_model", "fps_boxes", "fps_total"} <= record["metrics"].keys()
        by_class = [v for key, v in record["metrics"].items() if key.startswith("corloc/")]
        assert sum(by_class) / 3 == pytest.approx(record["metrics"]["corloc"], abs=1e-3)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "CorLoc % by class" in printed
    assert "whole image" in printed


def test_layouts_batches_and_workers_agree(run):
    boxes = []
    for layout, extra in [("voc", []), ("voc", ["--batch-size", "4", "--num-workers", "1"]), ("coco", [])]:
        records = run("--method", "patch-score", "lost", "--save-boxes", "boxes.json", *extra, layout=layout)
        found = json.loads(Path("boxes.json").read_text())["A"]
        boxes.append([sorted(each.values()) for each in found.values()])
        corloc = {protocol: record["metrics"]["corloc"] for protocol, record in records.items()}
        boxes[-1].append(corloc)
    assert boxes[0] == boxes[1] == boxes[2]
    assert run("--component", "all", layout="imagenet")["whole mask, trained token"]["n_images"] == NUMBER


def test_records_say_what_was_done(run):
    shown = ["--table", "--dataset-name", "VOC07 trainval", "--num-images", "4", "--dtype", "bfloat16"]
    records = run("--method", "lost", "patch-score", "--k-patches", "7", "--global-token", "last", *shown)
    lost, score = records["keys, 7 candidates"], records["peak component, last token K=0.5 release"]
    assert lost["dataset"] == "VOC07 trainval (4 images of it), native, keys, 7 candidates, bfloat16"
    assert (lost["table"], lost["row"], score["row"]) == ("corloc", "A, lost", "A, patch-score")
    config = score["config"]
    assert config["pooling"] == {"pool": "last", "top_k": 0.5, "variant": "release", "sigma": None}
    assert (config["patch_size"], config["without_object"], config["left_out"]) == (16, 0, {})
    assert (score["n_images"], score["checkpoint_sha256"], config["random_seed"]) == (4, None, 0)


def test_a_coco_list_and_what_is_missing(run, capsys):
    Path("list.txt").write_text("train2014/000000000003.jpg\n000000000001.jpg\nCOCO_9.jpg\n")
    with pytest.raises(SystemExit):
        run("--coco-list", "list.txt", layout="coco")
    assert "1 of the 3 images in list.txt are not in" in capsys.readouterr().err
    record = run("--coco-list", "list.txt", "--skip-broken", layout="coco")["peak component, trained token"]
    assert (record["n_images"], record["config"]["left_out"]) == (2, {"not in the annotations": 1})
    assert record["dataset"].startswith("coco/val2017 list, native")


def test_several_models_and_fixed_sizes(run, sets):
    """A model of fixed size sees images of its own size; every method reads it."""
    fixed = "B=timm:vit_tiny_patch16_224@random"
    small = "C=dino:vit_tiny/8@random"
    run("--model", small, "--save-boxes", "boxes.json", "--component", "all")
    assert list(json.loads(Path("boxes.json").read_text())) == ["A", "C"]
    samples = SyntheticObjects(1, "val", image_size=224, num_classes=2)
    write_voc(samples, "large")
    methods = ["--method", "patch-score", "lost", "dino-seg", "tokencut", "--dino-seg-head", "2"]
    records = run(*methods, "--voc-root", "large", "--voc-split", "val", layout=None, model=fixed)
    assert [record["n_images"] for record in records.values()] == [1, 1, 1, 1]
    assert {record["config"]["patch_size"] for record in records.values()} == {16}


def test_pictures_of_hits_and_misses(run):
    run("--pictures", "pictures", "--num-pictures", "5", "--method", "lost", "dino-seg", "--dino-seg-head", "0")
    paths = sorted(Path("pictures").iterdir())
    assert [path.name for path in paths] == ["A_dino-seg.png", "A_lost.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 1000


def test_half_of_the_pictures_are_hits_where_there_are_enough():
    best_iou = {index: 0.9 if index < 6 else 0.1 for index in range(20)}
    hits, misses = discovery_pictures.choose_images(best_iou, 8, seed=0)
    assert (len(hits), len(misses)) == (4, 4)
    assert all(index < 6 for index in hits)
    assert all(index >= 6 for index in misses)
    assert (hits, misses) == discovery_pictures.choose_images(dict(reversed(best_iou.items())), 8, seed=0)
    assert (hits, misses) != discovery_pictures.choose_images(best_iou, 8, seed=1)
    assert [len(part) for part in discovery_pictures.choose_images(best_iou, 16, seed=0)] == [6, 10]
    assert [len(part) for part in discovery_pictures.choose_images({3: 0.1, 4: 0.2}, 8, seed=0)] == [0, 2]
    assert [len(part) for part in discovery_pictures.choose_images({3: 0.5}, 8, seed=0)] == [1, 0]


def test_torchrun_draws_every_box_once(run, sets):
    alone = run("--method", "patch-score", "lost", "--save-boxes", "one.json", "--per-class")
    arguments = ["--model", ANY_SIZE, "--voc-root", f"{sets}/voc", "--voc-split", "val", "--num-workers", "0"]
    more = ["--method", "patch-score", "lost", "--save-boxes", "two.json", "--batch-size", "3", "--per-class"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    subprocess.run(
        [*launcher, str(SCRIPT), *arguments, *more, "--device", "cpu"],
        check=True,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=180,
    )
    assert json.loads(Path("one.json").read_text()) == json.loads(Path("two.json").read_text())
    for path in Path("results").glob("*.json"):
        record = json.loads(path.read_text())
        expected = alone[record["config"]["protocol"]]
        same = [key for key in expected["metrics"] if not key.startswith("fps")]
        assert {key: record["metrics"][key] for key in same} == {key: expected["metrics"][key] for key in same}
        assert (record["n_images"], record["num_processes"]) == (NUMBER, 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "one of --voc-root"),
        (["--voc-root", "a", "--imagenet-root", "b"], "--voc-root and --imagenet-root"),
        (["--coco-images", "a"], "needs both"),
        (["--voc-root", "a", "--coco-list", "b"], "needs both"),
        (["--voc-root", "nowhere"], "nowhere does not exist"),
        (["--coco-images", "nowhere", "--coco-json", "no.json"], "no.json"),
    ],
)
def test_one_line_for_wrong_images(run, capsys, arguments, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, layout=None)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "model", "match"),
    [
        (["--voc-split", "trainval"], ANY_SIZE, "no image list"),
        (["--num-images", "99"], ANY_SIZE, "more than the 9 images"),
        (["--method", "dino-seg"], ANY_SIZE, "has 3; choose another with --dino-seg-head"),
        (["--dino-seg-head", "-1"], ANY_SIZE, "from 0, got -1"),
        ([], "A=dino:vit_tiny/56@random", "less than a patch of 56"),
        ([], "A=dino:vit_tiny/16@random,pool=last,top_k=20", "top_k"),
        ([], "A=timm:vit_tiny_patch16_224@random", "9 of 9 images are of other sizes"),
        (["--method", "lost"], "A=timm:test_resnet@random", "patch score works on every supported host"),
        (["--global-token", "cls"], "A=timm:test_resnet@random", "no class token"),
        ([], "A=dino:vit_tiny/16@missing.pth", "missing.pth"),
        (["--device", "tpu"], ANY_SIZE, "device must be"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, arguments, model, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, model=model)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message
    assert not Path("results").exists()


def test_a_broken_image_stops_or_is_counted(run, sets, capsys):
    shutil.copytree(sets / "voc", "voc")
    path = sorted(Path("voc/VOC2012/JPEGImages").iterdir())[2]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit):
        run("--voc-root", "voc", "--voc-split", "val", layout=None)
    assert path.name in capsys.readouterr().err
    record = run("--voc-root", "voc", "--voc-split", "val", "--skip-broken", layout=None)
    (record,) = record.values()
    assert (record["n_images"], record["config"]["left_out"]) == (NUMBER - 1, {"broken image": 1})


def test_a_trained_backbone_of_timm_is_read_by_the_dino_form(run):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(model.state_dict(), "backbone.pth")
    (record,) = run(model="T=dino:vit_tiny/16@backbone.pth").values()
    assert len(record["checkpoint_sha256"]) == 16


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    # in the script's own folder, where its siblings are found as they are when it is started as a script
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert "--voc-root" in done.stdout
    assert done.stdout.endswith("False\n")
