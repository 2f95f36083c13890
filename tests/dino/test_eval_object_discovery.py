"""eval_object_discovery.py end to end on small VOC, COCO and ImageNet layouts, against loops over what it saved."""

import json
import re
import shutil
from pathlib import Path

import discover
import discovery_results
import eval_object_discovery
import numpy as np
import pytest
import torch
from defusedxml import ElementTree
from PIL import Image
from record_parts import read_records
from script_parts import run_two

from last_vit.data.synthetic import SyntheticObjects, write_voc

timm = pytest.importorskip("timm")
NUMBER, SIDE = 7, 40
ANY_SIZE = "A=dino:vit_mini/16@random,pool=last,top_k=0.5"
PHOTO = ["--model", ANY_SIZE, "--device", "cpu"]
FIXED = ["--num-workers", "0", "--device", "cpu"]


@pytest.fixture
def layouts(synthetic_sets):
    root = synthetic_sets
    coco = ["--coco-images", f"{root}/coco/val2017", "--coco-json", f"{root}/coco/annotations/instances_val2017.json"]
    voc = ["--voc-root", f"{root}/voc", "--voc-split", "val"]
    return {"voc": voc, "coco": coco, "imagenet": ["--imagenet-root", f"{root}/imagenet"], None: []}


@pytest.fixture
def run(layouts, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns its records by protocol."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, layout: str | None = "voc", model: str = ANY_SIZE, into="output") -> dict[str, dict]:
        shutil.rmtree(into, ignore_errors=True)
        eval_object_discovery.main(["--model", model, *FIXED, *layouts[layout], *arguments])
        return {record["config"]["protocol"]: record for record in read_records(into)}

    return call


def area(x1, y1, x2, y2):
    return max(0, x2 - x1) * max(0, y2 - y1)


def iou(a, b):
    inner = area(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
    return inner / (area(*a) + area(*b) - inner)


def saved_boxes(path="boxes.json", model="A"):
    return json.loads(Path(path).read_text())[model]


def test_all_methods_on_voc_against_a_loop(run, synthetic_sets, capsys):
    methods = ["--method", "patch-score", "lost", "dino-seg", "tokencut", "--component", "peak", "largest", "all"]
    more = ["--dino-seg-head", "1", "--save-boxes", "boxes.json", "--per-class", "--dataset-name", "small"]
    found = run(*methods, *more, "--pictures", "pictures", "--num-pictures", "2")
    names = {
        "patch-score, peak": "peak component, trained token",
        "patch-score, largest": "largest component, trained token",
        "patch-score, all": "whole mask, trained token",
        "lost": "keys, 100 candidates",
        "dino-seg": "head 1, as published",
        "tokencut": "keys",
    }
    assert list(saved_boxes()) == list(names)
    assert set(found) == set(names.values())
    objects = {}
    for path in (synthetic_sets / "voc/VOC2012/Annotations").iterdir():
        corners = [float(e.text) for e in ElementTree.parse(path).find("object/bndbox")]
        objects[f"{path.stem}.jpg"] = [corners[0] - 1, corners[1] - 1, *corners[2:]]
    whole = [iou([0, 0, SIDE, SIDE], box) >= 0.5 for box in objects.values()]
    for name, protocol in names.items():
        record, best = found[protocol], [iou(box, objects[image]) for image, box in saved_boxes()[name].items()]
        assert len(best) == record["n_images"] == NUMBER
        expected = {
            "corloc": 100 * sum(i >= 0.5 for i in best) / NUMBER,
            "mean_iou": 100 * sum(best) / NUMBER,
            "corloc_whole_image": 100 * sum(whole) / NUMBER,
        }
        assert {key: record["metrics"][key] for key in expected} == pytest.approx(expected, abs=1e-3)
        assert record["table"] is None
        assert record["dataset"] == f"small, native, {protocol}"
        assert {"fps_model", "fps_boxes", "fps_total"} <= record["metrics"].keys()
        assert sum(key.startswith("corloc/") for key in record["metrics"]) == 3
    pictures = {path.name: Image.open(path).width for path in Path("pictures").iterdir()}
    assert set(pictures) == {f"A_{name.replace(', ', '_')}.png" for name in names}
    assert min(pictures.values()) > 1000
    printed = capsys.readouterr().out
    assert all(text in printed for text in (*names, "CorLoc % by class", "whole image"))


def test_records_say_what_was_done(run):
    shown = ["--table", "--dataset-name", "VOC07 trainval", "--num-images", "4", "--dtype", "bfloat16"]
    methods = ["--method", "lost", "patch-score", "--k-patches", "7", "--global-token", "last"]
    found = run(*methods, *shown, into="results")
    lost, score = found["keys, 7 candidates"], found["peak component, last token K=0.5 release"]
    assert lost["dataset"] == "VOC07 trainval (4 images of it), native, keys, 7 candidates, bfloat16"
    assert (lost["table"], lost["row"], score["row"]) == ("corloc", "A, lost", "A, patch-score")
    config = score["config"]
    assert config["pooling"] == {"pool": "last", "top_k": 0.5, "variant": "release", "sigma": None}
    assert (config["patch_size"], config["without_object"], config["left_out"]) == (16, 0, {})
    assert (score["n_images"], score["checkpoint_sha256"], config["random_seed"]) == (4, None, 0)


def test_the_peers_options_are_in_the_records(run):
    """And --resize lets a model of fixed size see images of any; its boxes are those of the files' pixels."""
    options = ["--which-features", "v", "--tau", "0.3", "--eps", "0.01", "--method", "lost", "tokencut"]
    found = run(*options, "--resize", "64", "96", "--save-boxes", "boxes.json")
    assert set(found) == {"values, 100 candidates", "values, tau 0.3, eps 0.01"}
    assert {record["dataset"].split(", ")[1] for record in found.values()} == {"64 x 96 px"}
    edges = np.array([list(boxes.values()) for boxes in saved_boxes().values()])
    assert edges.min() == 0
    assert edges.max() <= SIDE
    assert not np.allclose(edges / 40 * 64 / 16 % 1, 0), "the two sides are scaled apart"
    np.testing.assert_allclose(edges[..., 1::2] / SIDE * 4 % 1, 0, atol=1e-9)
    np.testing.assert_allclose(edges[..., ::2] / SIDE * 6 % 1, 0, atol=1e-9)
    fixed = "B=timm:vit_tiny_patch16_224@random"
    (record,) = run("--resize", "224", "224", model=fixed).values()
    assert record["dataset"].split(", ")[1] == "224 x 224 px"


def test_any_photo_gets_the_boxes_of_the_evaluation_and_upright(run, synthetic_sets, capsys):
    flags = ["--method", "patch-score", "lost", "tokencut", "--which-features", "q", "--resize", "64"]
    run(*flags, "--save-boxes", "boxes.json")
    paths, exif = sorted((synthetic_sets / "voc/VOC2012/JPEGImages").iterdir())[:2], Image.Exif()
    exif[0x0112] = 8  # to be turned by a quarter anticlockwise
    turned = Image.open(paths[0]).transpose(Image.Transpose.ROTATE_270)
    turned.resize((60 * SIDE, 60 * SIDE), Image.Resampling.NEAREST).save("turned.png", exif=exif)
    capsys.readouterr()
    discover.main([*PHOTO, *flags, "--image", *map(str, paths), "--image", "turned.png"])
    found = re.findall(r"^A, (\w+): (.+) \[(.*)\]$", capsys.readouterr().out, re.MULTILINE)
    boxes = {(photo, method): [int(edge) for edge in box.split(", ")] for photo, method, box in found}
    for method, by_image in saved_boxes().items():
        for path in paths:
            assert boxes[path.stem, method] == [int(f"{edge:.0f}") for edge in by_image[path.name]]
        large = [edge / 60 for edge in boxes["turned", method]]  # in the photo's own pixels
        np.testing.assert_allclose(large, boxes[paths[0].stem, method], atol=0.6)
    widths = [Image.open(path).width for path in Path("output/discover").iterdir()]
    assert (len(widths), min(widths) > 1000) == (3, True)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--image", "boxes.txt"], "photo boxes.txt cannot be read: "),
        (["--resize", "8", "8"], "photo a is 8 x 8 pixels (width x height), less than a patch of 16"),
        (["--model", "B=timm:vit_tiny_patch16_224@random"], "such as a (480 x 480, width x height): give --resize 224"),
    ],
)
def test_one_line_for_every_photo_that_does_not_fit(tmp_path, monkeypatch, refused, flags, match):
    monkeypatch.chdir(tmp_path)
    Path("boxes.txt").touch()
    Image.new("RGB", (40, 40)).save("a.png")
    assert match in refused(discover.main, *PHOTO, "--image", "a.png", *flags)


def test_several_models_fixed_sizes_and_trained_weights(run):
    """A model of fixed size sees images of its own size, and every method reads it; a plain ViT's weights take any."""
    vit = timm.models.vision_transformer.VisionTransformer(embed_dim=192, depth=4, num_heads=3, num_classes=0)
    torch.save(vit.state_dict(), "backbone.pth")
    run("--model", "C=dino:vit_mini/16@backbone.pth", "--save-boxes", "boxes.json", "--component", "all")
    assert list(json.loads(Path("boxes.json").read_text())) == ["A", "C"]
    assert sum(record["checkpoint_sha256"] is not None for record in read_records("output")) == 1
    write_voc(SyntheticObjects(1, "val", image_size=224, num_classes=2), "large")
    methods = ["--method", "patch-score", "lost", "dino-seg", "tokencut", "--dino-seg-head", "1"]
    large = ["--voc-root", "large", "--voc-split", "val"]
    found = run(*methods, *large, layout=None, model="B=timm:vit_tiny_patch16_224@random")
    assert [(record["n_images"], record["config"]["patch_size"]) for record in found.values()] == [(1, 16)] * 4


def test_pictures_show_hits_and_misses_half_and_half_where_there_are_enough():
    choose = discovery_results.choose_images
    best_iou = {index: 0.9 if index < 6 else 0.1 for index in range(20)}
    hits, misses = choose(best_iou, 8, seed=0)
    assert max(hits) < 6 <= min(misses)
    assert (hits, misses) == choose(dict(reversed(best_iou.items())), 8, seed=0) != choose(best_iou, 8, seed=1)
    for known, number, sizes in ((best_iou, 8, [4, 4]), (best_iou, 16, [6, 10]), ({3: 0.1, 4: 0.2}, 8, [0, 2])):
        assert [len(part) for part in choose(known, number, seed=0)] == sizes


def test_torchrun_draws_every_box_once(run, layouts):
    flags = ["--method", "patch-score", "lost", "--per-class"]
    alone = run(*flags, "--save-boxes", "one.json")
    more = ["--model", ANY_SIZE, "--num-workers", "0", "--save-boxes", "two.json", "--batch-size", "3"]
    run_two("dino/eval_object_discovery.py", *flags, *layouts["voc"], *more, "--output", "two")
    assert saved_boxes("one.json") == saved_boxes("two.json")
    two = [record for record in read_records("output") if record["name"].startswith("two_")]
    assert len(two) == 2
    for record in two:
        expected = alone[record["config"]["protocol"]]["metrics"]
        assert all(record["metrics"][key] == expected[key] for key in expected if not key.startswith("fps"))
        assert (record["n_images"], record["num_processes"]) == (NUMBER, 2)


@pytest.mark.parametrize(
    ("layout", "arguments", "match"),
    [
        (None, [], "one of --voc-root"),
        (None, ["--voc-root", "a", "--imagenet-root", "b"], "--voc-root and --imagenet-root"),
        (None, ["--coco-images", "a"], "needs both"),
        (None, ["--voc-root", "a", "--coco-list", "b"], "needs both"),
        (None, ["--voc-root", "nowhere"], "nowhere does not exist"),
        (None, ["--coco-images", "nowhere", "--coco-json", "no.json"], "no.json"),
        ("coco", ["--coco-list", "no.txt"], "no.txt"),
        ("voc", ["--voc-split", "trainval"], "trainval.txt; lists there: val"),
        ("voc", ["--num-images", "99"], "more than the 7 images"),
        (
            "voc",
            ["--method", "dino-seg"],
            ".jpg: --dino-seg-head 4, counted from 0, is none of the",
        ),
        ("voc", ["--model", "B=dino:vit_mini/56@random"], "less than a patch of 56"),
        ("voc", ["--model", "B=dino:vit_mini/16@random,pool=last,top_k=20"], "top_k"),
        ("voc", ["--model", "B=timm:vit_tiny_patch16_224@random"], "7 of 7 images are of other sizes"),
        ("voc", ["--resize", "1", "2", "3"], "the shorter side, or height and width, got 3 numbers"),
        ("voc", ["--method", "tokencut", "--eps", "2"], "a weight in (0, 1], got 2.0"),
        ("voc", ["--method", "lost", "--model", "B=timm:test_resnet@random"], "patch score works on every supported"),
        ("voc", ["--global-token", "cls", "--model", "B=timm:test_resnet@random"], "no class token"),
    ],
)
def test_one_line_for_every_mistake(layouts, tmp_path, monkeypatch, refused, layout, arguments, match):
    monkeypatch.chdir(tmp_path)
    models = [] if "--model" in arguments else ["--model", ANY_SIZE]
    assert match in refused(eval_object_discovery.main, *models, *FIXED, *layouts[layout], *arguments)
    assert not list(tmp_path.iterdir())


def test_a_broken_image_stops_or_is_counted(run, synthetic_sets, refused):
    shutil.copytree(synthetic_sets / "voc", "voc")
    path = sorted(Path("voc/VOC2012/JPEGImages").iterdir())[2]
    path.write_bytes(path.read_bytes()[:200])
    flags = ["--voc-root", "voc", "--voc-split", "val"]
    assert path.name in refused(eval_object_discovery.main, "--model", ANY_SIZE, *FIXED, *flags)
    (record,) = run(*flags, "--skip-broken", layout=None).values()
    assert (record["n_images"], record["config"]["left_out"]) == (NUMBER - 1, {"broken image": 1})
