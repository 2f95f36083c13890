"""plot_dynamics.py: each evaluation of a log once, checkpoints measured as elsewhere, runs told apart."""

import json
import shutil
from pathlib import Path

import evaluate_patch_hit
import figure_style
import plot_dynamics
import pytest
import torch
from diagnostic_parts import IMAGENET
from matplotlib.colors import to_hex
from training_curve import numbered_checkpoints, read_training_curve


def evaluation(iteration, acc1, point_in_box, baseline=30.0, **more):
    boxes = {"point_in_box_random": baseline, "point_in_box_center": baseline + 40}
    return {"acc1": acc1, "acc5": 90.0, "iteration": iteration, "point_in_box": point_in_box, **boxes, **more}


def write_log(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


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


def test_names(tmp_path):
    run, odd = (write_log(tmp_path / name, evaluation(1, 1.0, 1.0)) for name in ("run", "k=1"))
    for text, name in ((f"{run}", "run"), (f"{odd}", "k=1"), (f"CLS={run}", "CLS"), (f"LaSt K=1={run}", "LaSt K=1")):
        assert read_training_curve(text).name == name


def test_runs_in_one_picture(call, capsys):
    """Seeds share a colour; a baseline is grey where it is everybody's, and of the run's colour where it is not."""
    write_log(Path("a0"), evaluation(4, 10.0, 40.0), evaluation(9, 12.0, 44.0))
    write_log(Path("a1"), evaluation(4, 11.0, 41.0))
    write_log(Path("b"), evaluation(4, 15.0, 45.5, baseline=50.0))
    flags = [text for run in ("A=a0", "A=a1", "B=b") for text in ("--run", run)]
    plot_dynamics.main([*flags[:4], "--figure", "same.png"])
    plot_dynamics.main([*flags, "--figure", "all.png"])
    same, every = call.figures.values()
    accuracy, point_in_box = every.axes
    first, second = (figure_style.model_color(index).lower() for index in (0, 1))
    assert [(list(line.get_ydata()), to_hex(line.get_color())) for line in accuracy.lines] == [
        ([10.0, 12.0], first), ([11.0], first), ([15.0], second)
    ]  # fmt: skip
    baselines = {line.get_ydata()[0]: to_hex(line.get_color()) for line in point_in_box.lines[3:]}
    assert baselines == {30.0: first, 70.0: first, 50.0: second, 90.0: second}
    shared = {line.get_ydata()[0]: to_hex(line.get_color()) for line in same.axes[1].lines[2:]}
    assert shared == {30.0: "#777777", 70.0: "#777777"}
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("A (a0) 4 ", "A (a0) 9 ", "A (a1) 4 ", "B 4 ", "45.50"))


@pytest.mark.parametrize(
    ("row", "message"), [({"total_loss": 1.0}, "no evaluation: train with"), ({"acc1": 1.0}, "without Point-in-Box")]
)
def test_logs_without_what_is_drawn(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_training_curve(str(write_log(tmp_path, {"iteration": 0, **row})))


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


def test_checkpoints_are_measured_as_a_model_is(call, capsys):
    Path("run").mkdir()
    weights = torch.load("vit.pth", weights_only=True)
    for number in (1, 20):
        weights["head.weight"] = weights["head.weight"].roll(number, dims=0)
        torch.save(weights, f"run/model_{number:07d}.pth")
    shutil.copy("run/model_0000020.pth", "run/model_final.pth")
    found = call(plot_dynamics, *IMAGENET, "--max-box-area", "none", models=("ViT=timm:test_vit@run",))
    printed = capsys.readouterr().out
    assert "run: left out model_final.pth (no number)" in printed
    assert "imagenet val, any box, release rule, trained token" in printed
    panels = call.figures["results/dynamics.png"].axes
    assert list(panels[0].lines[0].get_xdata()) == [1, 20]
    records = {record["config"]["checkpoint"]: record for record in found}
    for place, number in enumerate((1, 20)):
        file = f"run/model_{number:07d}.pth"
        flags = [*IMAGENET, "--max-box-area", "none"]
        (expected,) = call(evaluate_patch_hit, *flags, models=(f"one=timm:test_vit@{file}",))
        for key in ("metrics", "n_images", "dataset", "checkpoint_sha256"):
            assert records[file][key] == expected[key]
        for panel, key in zip(panels, ("acc1", "point_in_box"), strict=True):
            assert panel.lines[0].get_ydata()[place] == pytest.approx(expected["metrics"][key], abs=1e-3)
