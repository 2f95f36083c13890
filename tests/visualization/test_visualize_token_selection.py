"""visualize_token_selection.py end to end: its numbers against plain loops, the release's command, its errors."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import visualize_token_selection
from foreground_images import ForegroundImages
from patch_foreground import patch_foreground
from PIL import Image
from selection_figure import SelectionView, draw_rows
from torchvision.models import vit_b_16

from last_vit.data.transforms import EvalTransform
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.pooling import stability

SCRIPT = Path(visualize_token_selection.__file__)
CLS, LAST = "CLS=timm:test_vit@random", "LaSt=timm:test_vit@random,pool=last,top_k=3,variant=paper"
SMALL = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An ImageNet of five images, each with a box in XML and with a mask, of which the last has no object."""
    root = tmp_path_factory.mktemp("mini")
    rng = np.random.default_rng(0)
    for name in ("val/n01", "Annotations/CLS-LOC/val", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(5):
        width, height = 70 + 10 * i, 90 - 5 * i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"val/n01/{i}.png")
        mask = np.zeros((height, width), np.uint8)
        if i < 4:
            mask[10 : 40 + 5 * i, 15:60] = 1
        Image.fromarray(mask).save(root / f"masks/{i}.png")
        box = f"<xmin>15</xmin><ymin>10</ymin><xmax>60</xmax><ymax>{40 + 5 * i}</ymax>"
        found = f"<object><name>n01</name><bndbox>{box}</bndbox></object>" if i < 4 else ""
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (root / f"Annotations/CLS-LOC/val/{i}.xml").write_text(f"<annotation>{size}{found}</annotation>")
    return root


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Call the script in an empty folder; returns the records by file name."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> dict[str, dict]:
        visualize_token_selection.main([*SMALL, *arguments])
        return {path.stem: json.loads(path.read_text()) for path in Path("results").glob("*.json")}

    return call


def by_hand(
    root: Path, text: str, k: int, variant: str, chosen: Sequence[int] = range(5)
) -> tuple[np.ndarray, float, float]:
    """Votes per position, and the share of votes and patches inside, channel by channel."""
    trained = parse_model_argument(text).load(64, 72)
    prep = trained.preprocessing
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = ForegroundImages(root / "val", transform, masks=root / "masks")
    position, inside, front_patches, patches = np.zeros(16), 0, 0, 0
    for index in chosen:
        sample = images[index]
        with torch.no_grad():
            tokens = dense_forward(trained.model, sample["image"][None]).patch_tokens
        score = stability(tokens, variant=variant)[0].numpy()
        votes = np.zeros(16)
        for channel in range(score.shape[1]):
            for patch in np.argsort(-score[:, channel], kind="stable")[:k]:
                votes[patch] += 1
        position += votes
        front = patch_foreground(sample["foreground"][None], (4, 4))[0][0].numpy()
        if front.any():
            inside, front_patches, patches = inside + votes[front].sum(), front_patches + front.sum(), patches + 16
    total = position.sum()
    return position / total, 100 * inside / (patches / 16 * total / len(chosen)), 100 * front_patches / patches


@pytest.mark.parametrize(("text", "variant"), [(CLS, "release"), (LAST, "paper")])
def test_numbers_against_loops(run, root, text, variant, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("selection_figure.draw_rows", lambda rows: drawn.extend(rows) or draw_rows(rows))
    masks = ["--masks", str(root / "masks"), "--dataset-name", "mini"]
    records = run("--model", text, "--images", str(root / "val"), *masks, "--k", "1", "3", "0.5")
    name = text.partition("=")[0]
    assert records.keys() == {f"votes_k{k}_{name}_mini" for k in ("1", "3", "0.5")}
    for asked, k, view in zip(("1", "3", "0.5"), (1, 3, 8), drawn[0], strict=True):
        frequency, inside, uniform = by_hand(root, text, k, variant)
        np.testing.assert_allclose(view.frequency.flatten(), frequency, atol=1e-9)
        record = records[f"votes_k{asked}_{name}_mini"]
        assert record["dataset"] == f"mini, 64 px, masks, votes of K = {k} of 16"
        assert (record["n_images"], record["config"]["variant"]) == (5, variant)
        metrics = record["metrics"]
        assert metrics["votes_inside"] == pytest.approx(inside, abs=1e-3)
        assert metrics["votes_inside_uniform"] == pytest.approx(uniform, abs=1e-3)
        assert metrics["votes_lift"] == pytest.approx(inside / uniform, abs=1e-3)
        assert metrics["position_peak"] == pytest.approx(16 * frequency.max(), abs=1e-3)
        assert metrics["num_object_images"] == 4
        assert record["table"] is None
    printed = capsys.readouterr().out
    assert "8 of 16" in printed
    assert "5 of 5 images; inside: over the 4 that show both object and background" in printed


def test_every_patch_kept_is_uniform(run, root):
    records = run("--model", CLS, "--images", str(root / "val"), "--masks", str(root / "masks"), "--k", "16")
    (metrics,) = (record["metrics"] for record in records.values())
    assert (metrics["votes_lift"], metrics["position_peak"], metrics["vote_area_50"]) == (1, 1, 100)


def test_a_row_per_model_and_a_map_per_k(run, root):
    images = ["--images", str(root / "val")]
    records = run("--model", CLS, "--model", LAST, *images, "--k", "1", "2", "--table", "--output", "mine")
    assert {(record["row"], record["table"]) for record in records.values()} == {("CLS", "votes"), ("LaSt", "votes")}
    assert len(records) == 4
    assert all(name.startswith(("mine_k1_", "mine_k2_")) for name in records)
    assert all("votes_inside" not in record["metrics"] for record in records.values())  # no objects known
    four = Image.open("results/token_selection.png")
    run("--model", CLS, *images, "--figure", "one.png")
    one = Image.open("one.png")
    assert (four.width / one.width, four.height / one.height) == (2, 2)


def test_scale_is_shared_by_a_row_and_uniform_stays_white():
    views = [SelectionView("m", k, torch.tensor([[peak, 1 - peak]]), {}) for k, peak in ((1, 0.9), (2, 0.5))]
    figure = draw_rows([views])
    first, second = (panel.images[0] for panel in figure.axes[:2])
    assert first.norm is second.norm
    assert (first.norm(1.0), first.norm(0.0), first.norm(2.0)) == (0.5, 0.0, 1.0)
    assert second.get_array().tolist() == [[1.0, 1.0]]
    views = [SelectionView("m", 1, torch.tensor([[0.7, 0.1], [0.1, 0.1]]), {})]
    assert draw_rows([views]).axes[0].images[0].norm.vmax == pytest.approx(2.8)


def test_images_are_drawn_by_seed(run, root):
    ask = ["--model", CLS, "--images", str(root / "val"), "--masks", str(root / "masks"), "--num-images", "2"]
    for seed in (0, 2):
        chosen = torch.randperm(5, generator=torch.Generator().manual_seed(seed))[:2].sort().values.tolist()
        for _ in range(2):
            (record,) = run(*ask, "--seed", str(seed)).values()
            _, inside, uniform = by_hand(root, CLS, 1, "release", chosen)
            assert record["n_images"] == 2
            assert record["metrics"]["votes_inside"] == pytest.approx(inside, abs=1e-3)
            assert record["metrics"]["votes_inside_uniform"] == pytest.approx(uniform, abs=1e-3)
    (other,) = run(*ask, "--seed", "0").values()
    assert other["metrics"]["votes_inside"] != record["metrics"]["votes_inside"]


def test_imagenet_root_finds_images_and_boxes(run, root):
    (record,) = run("--model", CLS, "--imagenet-root", str(root)).values()
    assert record["metrics"]["num_object_images"] == 4
    assert record["dataset"] == f"{root.name}/val, 64 px, boxes, votes of K = 1 of 16"
    boxes = root / "Annotations" / "CLS-LOC" / "val"
    (named,) = run("--model", CLS, "--imagenet-root", str(root), "--imagenet-label-dir", str(boxes)).values()
    (plain,) = run("--model", CLS, "--images", str(root / "val"), "--boxes", str(boxes)).values()
    assert record["metrics"] == named["metrics"] == plain["metrics"]
    (masks,) = run("--model", CLS, "--imagenet-root", str(root), "--masks", str(root / "masks")).values()
    assert "masks" in masks["dataset"]


def test_imagenet_without_boxes(run, root, tmp_path, capfd):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "val").symlink_to(root / "val")
    (record,) = run("--model", CLS, "--imagenet-root", "bare").values()
    assert "votes_inside" not in record["metrics"]
    assert "no XML boxes beside" in capfd.readouterr().err


def test_the_releases_command(root, tmp_path, monkeypatch, capsys):
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
    command = ["--checkpoint", "ViT_190k.pth", "--imagenet-root", str(root), "--batch-size", "32"]
    visualize_token_selection.main([*command, "--num-workers", "0"])
    (record,) = (json.loads(path.read_text()) for path in Path("results").glob("*.json"))
    assert record["dataset"].endswith("224 px, boxes, votes of K = 1 of 196")
    assert record["config"]["pooling"] == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}
    assert "1 of 196" in capsys.readouterr().out


def test_checkpoint_goes_to_the_model_that_names_none(run, root):
    trained = parse_model_argument("timm:test_vit@random,seed=5").load(64, 72)
    torch.save(trained.model.state_dict(), "vit.pth")
    ask = ["--images", str(root / "val"), "--dataset-name", "mini", "--output"]
    apart = run(*ask, "a", "--model", "timm:test_vit,pool=last,top_k=2", "--checkpoint", "vit.pth")
    together = run(*ask, "b", "--model", "timm:test_vit@vit.pth,pool=last,top_k=2")
    first, second = apart["a_k1_timm_test_vit_mini"], together["b_k1_vit_mini"]
    assert first["metrics"] == second["metrics"]
    assert first["checkpoint_sha256"] == second["checkpoint_sha256"]
    assert first["config"]["checkpoint"] == "vit.pth"


def test_torchrun_counts_every_image_once(run, root):
    """Two processes over one image: one of them sees none, and still knows the grid."""
    ask = [
        "--model",
        LAST,
        "--images",
        str(root / "val"),
        "--masks",
        str(root / "masks"),
        "--num-images",
        "1",
        "--seed",
        "3",
    ]
    alone = run(*ask, "--output", "alone", "--k", "1", "0.5")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    subprocess.run(
        [*launcher, str(SCRIPT), *SMALL, *ask, "--output", "two", "--k", "1", "0.5"],
        check=True,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=120,
    )
    for name, record in alone.items():
        two = json.loads(Path("results", f"{name.replace('alone', 'two')}.json").read_text())
        assert (two["n_images"], two["num_processes"]) == (1, 2)
        assert two["metrics"] == record["metrics"]
        assert two["metrics"]["num_object_images"] == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--images", "{root}/val", "--model", CLS, "--k", "17"], "model 'CLS' on 64 px: top_k must be in [1, 16]"),
        (["--images", "{root}/val", "--model", CLS, "--k", "17"], "got 17"),
        (
            ["--images", "{root}/val", "--model", LAST.replace("=3", "=17")],
            "model 'LaSt' on 64 px: top_k must be in [1",
        ),
        (["--images", "{root}/val", "--model", CLS, "--k", "8", "0.5"], "--k [8, 0.5] gives [8, 8] patches"),
        (["--images", "{root}/val", "--model", CLS, "--k", "0"], "K is a number of patches (7) or a share"),
        (["--images", "{root}/val", "--model", CLS, "--k", "1.5"], "got 1.5"),
        (["--images", "{root}/val", "--model", CLS, "--k", "-3"], "got -3"),
        (["--images", "{root}/val", "--model", CLS, "--k", "many"], "got many"),
        (["--images", "{root}/val", "--model", CLS, "--num-images", "0"], "must be at least 1"),
        (["--images", "empty", "--model", CLS], "no image in empty"),
        (["--images", "nowhere", "--model", CLS], "nowhere"),
        (["--images", "{root}/val"], "no model"),
        (["--images", "{root}/val", "--imagenet-root", "{root}", "--model", CLS], "not allowed with"),
        (["--model", CLS], "--imagenet-root is required"),
        (["--imagenet-root", "empty", "--model", CLS], "has no such split"),
        (["--imagenet-root", "{root}", "--imagenet-label-dir", "nowhere", "--model", CLS], "nowhere"),
        (["--images", "{root}/val", "--imagenet-label-dir", "x", "--model", CLS], "goes with --imagenet-root"),
        (["--images", "{root}/val", "--model", CLS, "--checkpoint", "w.pth"], "one --model that names no weights"),
        (
            ["--images", "{root}/val", "--model", "A=timm:test_vit", "--model", CLS, "--checkpoint", "w.pth"],
            "one --model that names no weights",
        ),
        (["--images", "{root}/val", "--model", "timm:test_vit", "--checkpoint", "missing.pth"], "missing.pth"),
    ],
)
def test_one_line_for_every_mistake(run, root, capsys, arguments, match):
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        run(*(argument.replace("{root}", str(root)) for argument in arguments))
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "Traceback" not in message
    assert not Path("results").exists()


def test_help_is_light():
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\ntry: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "--imagenet-root" in done.stdout
    assert done.stdout.endswith("False\n")
