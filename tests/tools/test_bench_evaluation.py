"""The bench of the evaluations: a clock that splits loops exactly, real loops on tiny models, and the record."""

import json
from pathlib import Path

import bench_evaluation
import evaluation_runs
import pytest
import torch
from evaluation_files import CLASSES, FOLDERS, RepeatedObjects, write_set
from evaluation_runs import RunOptions
from loop_clock import LoopClock
from torch.utils.data import DataLoader, Dataset

CPU = torch.device("cpu")
SIDE, NUM_IMAGES = 64, 3
VIT = "dino:vit_tiny/16@random,pool=last,top_k=1"
MINI_CLIP = Path(bench_evaluation.__file__).parents[2] / "clip" / "model_configs" / "clip_mini_8.json"
TINY = {
    "point_in_box": VIT,
    "object_discovery": VIT,
    "segmentation": f"open_clip:{MINI_CLIP}@random",
    "detection": bench_evaluation.FVIT_SMALL,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for layout in FOLDERS:
        if layout != "voc":  # ade20k brings it
            write_set(root, layout, NUM_IMAGES, SIDE)
    return root


class SlowImages(Dataset):
    """Takes two seconds of a clock per image."""

    def __init__(self, now):
        self.now = now

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.now[0] += 2.0
        return index


def test_the_clock_splits_a_loop_exactly():
    now = [100.0]

    def model(batch):
        now[0] += 5.0
        return batch

    def loop(wrap):
        forward = wrap(model)
        for batch in DataLoader(SlowImages(now), batch_size=2):
            forward(batch)
            now[0] += 0.5
        now[0] += 4.0  # the metrics

    clock = LoopClock(CPU, lambda: now[0])
    for _ in range(2):  # a pass starts from zero
        times = clock.time(loop)
        assert (times.total, times.model, times.input, times.rest) == (12 + 15 + 1.5 + 4, 15.0, 12.0, 5.5)
    assert [batch.tolist() for batch in DataLoader(SlowImages(now), batch_size=3)] == [[0, 1, 2], [3, 4, 5]]
    assert now[0] == 100 + 2 * 32.5 + 12, "outside a pass a loader is left alone"


def test_a_loop_that_fails_leaves_the_loader_alone():
    original = DataLoader.__iter__
    with pytest.raises(ZeroDivisionError):
        LoopClock(CPU).time(lambda wrap: wrap(lambda: 1 / 0)())
    assert DataLoader.__iter__ is original


def test_repeated_images_keep_their_labels():
    samples = RepeatedObjects(5 * CLASSES + 3, 16)
    for index in (0, 1, 5 * CLASSES, 5 * CLASSES + 2):
        assert samples.render(index).label == samples.labels[index]
    assert samples.render(5 * CLASSES + 1) is samples.render(1)


@pytest.mark.parametrize("name", TINY)
def test_the_model_sees_every_image_once(name, data):
    if name == "detection":
        pytest.importorskip("detectron2")
    evaluation = getattr(evaluation_runs, name)(RunOptions(data, CPU, 2, 0, TINY[name]))
    seen = []

    def wrap(forward):
        def watched(*args):
            seen.append(len(args[-1]))  # a batch, behind the model in dense_forward's arguments
            return forward(*args)

        return watched

    evaluation.run(wrap)
    windows = 4 if name == "segmentation" else 1  # 336 x 336 in windows of 224, every 112
    assert sum(seen) == windows * evaluation.num_images == windows * 2
    assert (evaluation.bare is not None) == (name == "point_in_box")


def test_the_command_records_shares_that_add_up(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, model in TINY.items():
        sizes = {"cpu": (model, 2)}
        monkeypatch.setitem(bench_evaluation.CASES, name, bench_evaluation.CASES[name]._replace(sizes=sizes))
    names = ["point_in_box", "object_discovery"]
    flags = ["--device", "cpu", "--rounds", "1", "--images", "2", "--data", str(data), "--record"]
    bench_evaluation.main([*flags, "--evaluation", *names])
    record = json.loads((tmp_path / "results" / "bench_evaluation.json").read_text())
    metrics = record["metrics"]
    for name in names:
        shares = [metrics[f"{name}_{part}_percent"] for part in ("model", "input", "rest")]
        assert sum(shares) == pytest.approx(100, abs=1e-3)
        assert min(shares) > 0
        assert metrics[f"{name}_images_per_second"] > 0
    assert metrics["point_in_box_over_forward_limit"] == bench_evaluation.POINT_IN_BOX_LIMIT
    assert metrics["point_in_box_over_forward"] > 0
    assert not any(metric.startswith("segmentation") for metric in metrics)
    assert str(data) not in json.dumps(record)
    printed = capsys.readouterr().out
    assert "goal at most 1.1x" in printed
    assert "images/s" in printed


def test_a_folder_without_the_layout_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_evaluation.main(["--device", "cpu", "--evaluation", "point_in_box", "--data", str(tmp_path)])
    assert stopped.value.code == 2
    assert str(tmp_path / "imagenet") in capsys.readouterr().err
