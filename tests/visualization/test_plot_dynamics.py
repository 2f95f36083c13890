"""plot_dynamics.py: each evaluation of a log once, checkpoints measured as the table does it, runs told apart."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import figure_style
import plot_dynamics
import point_in_box_table
import pytest
import timm
import torch
from matplotlib.colors import to_hex
from training_curve import numbered_checkpoints, read_training_curve

from last_vit.data.synthetic import SyntheticObjects, write_imagenet

SCRIPT = Path(plot_dynamics.__file__)
SMALL = ["--image-size", "64", "--resize", "72", "--num-workers", "0", "--device", "cpu", "--batch-size", "3"]


def evaluation(iteration, acc1, point_in_box, baseline=30.0, **more):
    boxes = {"point_in_box_random": baseline, "point_in_box_center": baseline + 40}
    return {"acc1": acc1, "acc5": 90.0, "iteration": iteration, "point_in_box": point_in_box, **boxes, **more}


def write_log(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    figures = []
    monkeypatch.setattr(figure_style, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_log_of_a_resumed_and_killed_run(tmp_path):
    """The last line of an iteration counts, whatever else stands in it; parts of lines are counted, not read."""
    folder = write_log(
        tmp_path / "run",
        {"iteration": 0, "total_loss": 3.0},
        evaluation(4, 10.0, 40.0),
        evaluation(9, 20.0, 50.0, total_loss=2.0),
        evaluation(4, 11.0, 41.0),  # resumed before iteration 4
    )
    log = folder / "metrics.json"
    whole, broken = json.dumps(evaluation(14, 30.0, 60.0)), '{"acc1": 99.0, "iterat'
    log.write_text(log.read_text() + f"{broken}{whole}\n{whole}\n{broken}")
    curve = read_training_curve(str(folder))
    assert list(curve.points) == [4, 9, 14]
    assert [row["acc1"] for row in curve.points.values()] == [11.0, 20.0, 30.0]
    assert [row["point_in_box"] for row in curve.points.values()] == [41.0, 50.0, 60.0]
    assert set(curve.points[9]) == {"acc1", "point_in_box", "point_in_box_random", "point_in_box_center"}
    assert curve.left_out == "2 unreadable lines of the log"


@pytest.mark.parametrize(
    ("text", "name"), [("{}", "run"), ("CLS={}", "CLS"), ("LaSt K=1={}", "LaSt K=1"), ("{}/../run", "run")]
)
def test_names(text, name, tmp_path):
    folder = write_log(tmp_path / "run", evaluation(1, 1.0, 1.0))
    assert read_training_curve(text.format(folder)).name == name
    inside = write_log(tmp_path / "k=1", evaluation(1, 1.0, 1.0))
    assert read_training_curve(str(inside)).name == "k=1"


def test_runs_in_one_picture(drawn, tmp_path, monkeypatch, capsys):
    """Seeds share a colour; a baseline is grey where it is everybody's, and of the run's colour where it is not."""
    monkeypatch.chdir(tmp_path)
    write_log(Path("a0"), evaluation(4, 10.0, 40.0), evaluation(9, 12.0, 44.0))
    write_log(Path("a1"), evaluation(4, 11.0, 41.0))
    write_log(Path("b"), evaluation(4, 15.0, 45.5, baseline=50.0))
    flags = [text for run in ("A=a0", "A=a1", "B=b") for text in ("--run", run)]
    plot_dynamics.main([*flags[:4], "--figure", "same.png"])
    plot_dynamics.main([*flags, "--figure", "all.png"])
    accuracy, point_in_box = drawn[1].axes
    lines = [(list(line.get_xdata()), list(line.get_ydata()), to_hex(line.get_color())) for line in accuracy.lines]
    first, second = (figure_style.model_color(index).lower() for index in (0, 1))
    assert lines == [([4, 9], [10.0, 12.0], first), ([4], [11.0], first), ([4], [15.0], second)]
    assert [list(line.get_ydata()) for line in point_in_box.lines[:3]] == [[40.0, 44.0], [41.0], [45.5]]
    baselines = {line.get_ydata()[0]: to_hex(line.get_color()) for line in point_in_box.lines[3:]}
    assert baselines == {30.0: first, 70.0: first, 50.0: second, 90.0: second}
    assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == ["A", "B"]
    shared = {line.get_ydata()[0]: to_hex(line.get_color()) for line in drawn[0].axes[1].lines[2:]}
    assert shared == {30.0: "#777777", 70.0: "#777777"}
    printed = capsys.readouterr().out
    for row in ("A (a0) 4 ", "A (a0) 9 ", "A (a1) 4 ", "B 4 "):
        assert f"| {row}" in printed
    assert "45.50" in printed


def test_picture_is_written_and_left_out_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_log(Path("run"), evaluation(4, 10.0, 40.0))
    with Path("run/metrics.json").open("a") as log:
        log.write('{"acc')
    plot_dynamics.main(["--run", "run"])
    assert Path("results/dynamics.png").stat().st_size > 10_000
    assert "run: left out 1 unreadable line of the log" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"iteration": 0, "total_loss": 1.0}], r"no evaluation: train with train\.eval_period=.*boxes=True"),
        ([], "no evaluation"),
        ([{"iteration": 0, "acc1": 1.0}], r"without Point-in-Box: train with dataloader\.test\.dataset\.boxes=True"),
    ],
)
def test_logs_without_what_is_drawn(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_training_curve(str(write_log(tmp_path, *rows)))


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere.metrics\.json: a run is given as \[NAME=\]FOLDER"):
        read_training_curve(f"CLS={tmp_path}/nowhere")


def test_numbered_checkpoints(tmp_path):
    for name in ("model_0000011.pth", "model_0000002.pth", "checkpoint0003.pth", "model_final.pth", "log.txt"):
        (tmp_path / name).touch()
    found, others = numbered_checkpoints(tmp_path)
    assert [(number, path.name) for number, path in found.items()] == [
        (2, "model_0000002.pth"), (3, "checkpoint0003.pth"), (11, "model_0000011.pth")
    ]  # fmt: skip
    assert others == ["model_final.pth"]
    (tmp_path / "model_3.pth").touch()
    with pytest.raises(ValueError, match="two checkpoints of the same number"):
        numbered_checkpoints(tmp_path)


@pytest.fixture(scope="module")
def measured_folder(tmp_path_factory) -> Path:
    """ImageNet's layout with 6 images of 3 classes, and a run of two checkpoints with different weights."""
    root = tmp_path_factory.mktemp("dynamics")
    write_imagenet(SyntheticObjects(6, "val", image_size=48, num_classes=3), root / "imagenet")
    (root / "run").mkdir()
    for number in (1, 20):
        torch.manual_seed(number)
        weights = timm.create_model("test_vit", num_classes=3, img_size=64).state_dict()
        torch.save(weights, root / "run" / f"model_{number:07d}.pth")
    shutil.copy(root / "run/model_0000020.pth", root / "run/model_final.pth")
    return root


def test_checkpoints_are_measured_as_in_the_table(measured_folder, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--imagenet-root", str(measured_folder / "imagenet"), "--max-box-area", "none", *SMALL]
    plot_dynamics.main(["--model", f"ViT=timm:test_vit@{measured_folder / 'run'}", *flags])
    printed = capsys.readouterr().out
    assert "left out model_final.pth (no number)" in printed
    accuracy, point_in_box = drawn[0].axes
    assert list(accuracy.lines[0].get_xdata()) == [1, 20]
    records = sorted(Path("results").glob("dynamics_ViT_*.json"))
    assert len(records) == 2
    for record, number in zip(records, (1, 20), strict=True):
        file = measured_folder / "run" / f"model_{number:07d}.pth"
        point_in_box_table.main(["--model", f"one=timm:test_vit@{file}", "--output", "table", *flags])
        expected = json.loads(next(Path("results").glob("table_one_*.json")).read_text())
        found = json.loads(record.read_text())
        for key in ("metrics", "n_images", "dataset", "checkpoint_sha256"):
            assert found[key] == expected[key]
        place = [1, 20].index(number)
        for panel, key in ((accuracy, "acc1"), (point_in_box, "point_in_box")):
            assert panel.lines[0].get_ydata()[place] == pytest.approx(expected["metrics"][key], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --run --imagenet-root is required"),
        (["--run", "run", "--imagenet-root", "imagenet"], "not allowed with"),
        (["--run", "run", "--model", "timm:test_vit@run"], "belong together"),
        (["--imagenet-root", "imagenet"], "belong together"),
        (["--model", "timm:test_vit@random", "--imagenet-root", "imagenet"], "give a folder of them, SPEC@FOLDER"),
        (["--model", "timm:test_vit@imagenet", "--imagenet-root", "imagenet"], "no checkpoint whose name ends in"),
        (["--model", "timm:test_vit@gone", "--imagenet-root", "imagenet"], "no folder gone"),
        (["--run", "run", "--figure", "curve.mp3"], "must end in one of .png, .pdf, .svg"),
    ],
)
def test_user_errors_are_one_line(arguments, message, measured_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("imagenet").symlink_to(measured_folder / "imagenet")
    write_log(Path("run"), evaluation(1, 1.0, 1.0))
    with pytest.raises(SystemExit) as stopped:
        plot_dynamics.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_needs_no_torch():
    block = f"import runpy, sys; sys.modules['torch'] = sys.modules['matplotlib'] = None; sys.argv = ['x', '--help']; \
runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, cwd=SCRIPT.parent)
    assert done.returncode == 0, done.stderr
    assert "--run" in done.stdout
