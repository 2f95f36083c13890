"""evaluate_patch_hit.py end to end on a small folder in ImageNet's layout, against a loop written out by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate_patch_hit
import make_results_tables
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import VisionTransformer, vit_b_16

import last_vit.patch_hit
from last_vit import last_pool, patch_score
from last_vit.metrics import box_patch_mask
from last_vit.results import read_results

SCRIPT = Path(evaluate_patch_hit.__file__)
CONFIG = """
from detectron2.config import LazyCall as L
from torchvision.models import VisionTransformer, vit_b_16
model = L(VisionTransformer)(
    image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
)
"""
# (class, width, height, boxes): 7 single-object images, an odd number, of which the last has a large box
IMAGES = [
    ("n01", 40, 52, [(4, 8, 20, 24)]),
    ("n01", 64, 40, [(30, 5, 50, 30)]),
    ("n02", 48, 48, [(20, 20, 36, 36)]),
    ("n02", 33, 70, [(1, 40, 22, 60)]),
    ("n02", 50, 50, [(2, 2, 10, 10), (20, 20, 30, 30)]),
    ("n03", 90, 60, [(60, 30, 85, 50)]),
    ("n03", 60, 45, [(25, 10, 40, 35)]),
    ("n03", 44, 44, [(2, 2, 40, 40)]),
]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    rng = np.random.default_rng(0)
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    annotations.mkdir(parents=True)
    for i, (wnid, width, height, boxes) in enumerate(IMAGES):
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / wnid / f"image_{i}.png")
        objects = "".join(
            f"<object><name>{wnid}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for x1, y1, x2, y2 in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (annotations / f"image_{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    return model


@pytest.fixture
def run(imagenet, vit, tmp_path, monkeypatch):
    """Call the script in an empty folder with weights in the released trainer's layout; returns its record."""
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(CONFIG)
    release = {"model": {f"model.{name}": value for name, value in vit.state_dict().items()}}
    torch.save({**release, "trainer": {}, "iteration": 189_999}, "ViT_190k.pth")

    def call(*arguments: str) -> dict:
        fixed = ["--model", "tiny.py", "--checkpoint", "ViT_190k.pth", "--imagenet-root", str(imagenet)]
        small = ["--image-size", "32", "--resize", "36", "--num-workers", "0", "--device", "cpu", "--output", "out"]
        evaluate_patch_hit.main([*fixed, *small, *arguments])
        return json.loads(Path("results/out.json").read_text())

    return call


@torch.no_grad()
def by_hand(imagenet: Path, vit: VisionTransformer, kind: str, hit_rule: str, max_area: float) -> tuple[float, int]:
    transform = transforms.Compose(
        [
            transforms.Resize(36),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    hits = []
    for i, (wnid, width, height, boxes) in enumerate(IMAGES):
        x1, y1, x2, y2 = boxes[0]
        if len(boxes) > 1 or (x2 - x1) * (y2 - y1) >= max_area * width * height:
            continue
        image = transform(Image.open(imagenet / "val" / wnid / f"image_{i}.png"))[None]
        x = vit._process_input(image)
        tokens = vit.encoder(torch.cat([vit.class_token, x], dim=1))
        patches = tokens[:, 1:]
        query = tokens[:, 0] if kind == "cls" else last_pool(patches, top_k=1)
        peak = patch_score(patches, query).argmax()
        mask = box_patch_mask(
            torch.tensor(boxes, dtype=torch.float32), torch.tensor([[height, width]]), (4, 4), 32, 36, hit_rule
        )
        hits.append(bool(mask[0, peak]))
    return 100 * sum(hits) / len(hits), len(hits)


@pytest.mark.parametrize(
    ("token", "hit_rule", "area"),
    [("trained", "release", "0.25"), ("cls", "center", "none"), ("cls", "release", "none")],
)
def test_release_layout_against_a_loop(run, imagenet, vit, token, hit_rule, area, capsys):
    """Weights that record no pooling are read as released: LaSt, K = 1."""
    record = run("--global-token", token, "--hit-rule", hit_rule, "--max-box-area", area)
    expected, num_images = by_hand(imagenet, vit, token, hit_rule, 9.9 if area == "none" else float(area))
    assert (record["metrics"]["point_in_box"], record["n_images"]) == (pytest.approx(expected, abs=1e-3), num_images)
    assert record["config"]["pooling"] == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}
    assert "records no pooling" in record["config"]["pooling_source"]
    assert record["config"]["left_out"]["several objects"] == 1
    assert {"point_in_box_random", "point_in_box_center", "acc1", "acc5"} <= record["metrics"].keys()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Point-in-Box", "random patch", "image centre", "several objects"))


def test_recorded_pooling_wins_and_an_argument_wins_over_it(run):
    checkpoint = torch.load("ViT_190k.pth", weights_only=True)
    recorded = {"pool": "last", "top_k": 3, "variant": "paper", "sigma": None}
    torch.save({**checkpoint, "pooling": recorded}, "ViT_190k.pth")
    assert run()["config"]["pooling"] == recorded
    assert run("--top-k", "0.5")["config"]["pooling"] == {**recorded, "top_k": 0.5}
    assert run("--pool", "mean")["config"]["pooling"]["pool"] == "mean"


def test_bare_weights_are_read_by_their_host(run, vit, imagenet):
    torch.save(vit.state_dict(), "ViT_190k.pth")
    record = run("--row", "tiny", "--dataset-name", "Mini", "--max-box-area", "none")
    assert record["config"]["pooling"] == {"pool": "host"}
    assert record["metrics"]["point_in_box"] == pytest.approx(
        by_hand(imagenet, vit, "cls", "release", 9.9)[0], abs=1e-3
    )
    assert (record["table"], record["row"]) == ("point_in_box", "tiny")
    assert record["dataset"] == "Mini val, 32 px, any box, release rule, trained token"


def test_a_convnet_from_timm(run, imagenet):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), "resnet.pth")
    record = run("--model", "timm:test_resnet", "--checkpoint", "resnet.pth", "--image-size", "64", "--resize", "64")
    assert "acc1" not in record["metrics"]  # 5 classes are not the folder's 3
    assert record["config"]["pooling"] == {"pool": "host"}


def test_the_papers_row_meets_two_protocols_of_ours(run):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), "resnet.pth")
    run()  # in no table
    for rule in ("release", "center"):
        model = ["--model", "timm:test_resnet", "--checkpoint", "resnet.pth", "--image-size", "224", "--resize", "256"]
        shown = ["--row", "ResNet, labels", "--dataset-name", "ImageNet-1k", "--output", f"resnet {rule}"]
        run(*model, "--hit-rule", rule, *shown)
    records = read_results(Path("results"))
    assert [record.name for record in records] == ["out", "resnet_center", "resnet_release"]
    table = make_results_tables.TABLES["point_in_box"]
    lines = make_results_tables.render_table(table, [record for record in records if record.table]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "ResNet, labels" in line]
    paper = next(f"{row.value:.1f}" for row in table.paper if row.row == "ResNet, labels")
    start = "ImageNet-1k val, 224 px, box < 25 %,"
    assert [row[1:4] for row in cells] == [
        [f"{start} center rule, trained token", paper, f"{records[1].metrics['point_in_box']:.1f}"],
        [f"{start} release rule, trained token", "", f"{records[2].metrics['point_in_box']:.1f}"],
    ]


def test_the_extra_token_has_what_is_recorded_or_asked_for(run, monkeypatch):
    used = []
    count = last_vit.patch_hit.count_patch_hits
    monkeypatch.setattr(last_vit.patch_hit, "count_patch_hits", lambda *args: used.append(args[6]) or count(*args))
    checkpoint = torch.load("ViT_190k.pth", weights_only=True)
    recorded = {"pool": "last", "top_k": 3, "variant": "paper", "sigma": 2.5}
    torch.save({**checkpoint, "pooling": recorded}, "ViT_190k.pth")
    run("--global-token", "last")
    run("--global-token", "last", "--top-k", "0.5", "--variant", "release")
    assert [(pool.top_k, pool.sigma, pool.variant) for pool in used] == [(3, 2.5, "paper"), (0.5, 2.5, "release")]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
def test_the_releases_command_with_its_three_arguments(imagenet, tmp_path, monkeypatch, capsys):
    """Real ViT-B/16 in the released layout; its matrices are one row each, repeated, which makes the file small."""
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vit_b_16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.{name}": torch.randn(shape[-1:] if len(shape) == 2 else shape, generator=generator)
        .mul_(0.1)
        .expand(shape)
        for name, shape in shapes.items()
    }
    torch.save({"model": weights, "trainer": {}, "iteration": 189_999}, "ViT_190k.pth")
    assert Path("ViT_190k.pth").stat().st_size < 10e6
    evaluate_patch_hit.main(["--checkpoint", "ViT_190k.pth", "--imagenet-root", str(imagenet), "--batch-size", "32"])
    record = json.loads(Path("results/patch_hit_ViT_190k.json").read_text())
    assert record["n_images"] == 6
    assert record["dataset"] == f"{imagenet.name} val, 224 px, box < 25 %, release rule, trained token"
    assert record["config"]["pooling"] == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}
    assert (record["config"]["resize"], record["config"]["crop"]) == (256, 224)
    assert record["table"] is None
    assert "Point-in-Box" in capsys.readouterr().out


def test_torchrun_counts_every_image_once(run, imagenet):
    alone = run("--max-box-area", "none")
    assert alone["n_images"] == 7
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    arguments = ["--model", "tiny.py", "--checkpoint", "ViT_190k.pth", "--imagenet-root", str(imagenet)]
    small = ["--image-size", "32", "--resize", "36", "--num-workers", "0", "--device", "cpu", "--output", "two"]
    root = SCRIPT.parents[1]
    subprocess.run(
        [*launcher, str(SCRIPT), *arguments, *small, "--max-box-area", "none", "--batch-size", "2"],
        check=True,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=120,
    )
    two = json.loads(Path("results/two.json").read_text())
    assert (two["n_images"], two["num_processes"]) == (7, 2)
    assert two["metrics"] == alone["metrics"]
    assert two["command"].startswith("torchrun --nproc-per-node=2")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--checkpoint", "missing.pth"], "missing.pth"),
        (["--imagenet-root", "nowhere"], "nowhere"),
        (["--imagenet-label-dir", "nowhere"], "nowhere"),
        (["--imagenet-meta", "meta.bin"], "it is not needed"),
        (["--model", "timm:vit_nope"], "unknown timm model"),
        (["--opts", "model.nope=1"], "unknown override key"),
        (["--image-size", "48", "--resize", "48"], "images are (48, 48)"),
        (["--pool", "mean", "--top-k", "3"], "pool 'last'"),
        (["--top-k", "0"], "top_k"),
        (["--global-token", "last", "--top-k", "0"], "top_k"),
        (["--max-box-area", "0.0001"], "no image"),
        (["--max-box-area", "2"], "or none; got 2"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, arguments, match):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message
    assert not Path("results").exists()


def test_one_line_for_an_image_that_a_worker_cannot_read(run, imagenet, tmp_path, capsys):
    shutil.copytree(imagenet, "broken")
    path = Path("broken/val/n02/image_2.png").rename("broken/val/n02/image_2.jpg")
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    for num_workers in ("0", "1"):
        with pytest.raises(SystemExit):
            run("--imagenet-root", "broken", "--num-workers", num_workers)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("evaluate_patch_hit.py: error: ")
        assert "image_2.jpg" in lines[0]


def test_other_architecture_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--opts", "model.num_layers=2")
    assert "missing" in capsys.readouterr().err


def test_a_config_must_not_contradict_the_checkpoint(run, capsys):
    wrapper = "from classification_net import ClassificationNet as N\nmodel = L(N)(model=vit, pool='mean')\n"
    Path("tiny.py").write_text(CONFIG.replace("model = L(", "vit = L(") + wrapper)
    assert run()["config"]["pooling"]["pool"] == "mean"  # nothing recorded: the config's
    torch.save({**torch.load("ViT_190k.pth", weights_only=True), "pooling": {"pool": "host"}}, "ViT_190k.pth")
    with pytest.raises(SystemExit):
        run()
    assert "records the host's own read-out" in capsys.readouterr().err
    assert run("--opts", "model.pool=host")["config"]["pooling"] == {"pool": "host"}


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    # its folder comes first on the path, as when it is run by name
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert "--imagenet-label-dir" in done.stdout
    assert done.stdout.endswith("False\n")
