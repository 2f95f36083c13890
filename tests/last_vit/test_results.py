"""Results records: lineage, names, what is refused; the recorded command holds no path of this machine."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import evaluate_patch_hit
import pytest
from record_parts import write

from last_vit import results
from last_vit.results import dataset_name, hide_machine_paths, read_results, result_name, run_command, write_records

SCRIPT = Path(evaluate_patch_hit.__file__).resolve()
REPO = SCRIPT.parents[1]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


def test_record_has_its_lineage(tmp_path, monkeypatch):
    path = write(tmp_path / "results", details=[["class", "ap"], ["traffic [cone]", 1.5]])
    assert '\n    ["class", "ap"],\n' in path.read_text()
    entries = json.loads(path.read_text())
    assert path.name == "run.json"
    assert entries["metrics"]["point_in_box"] == 43.21
    assert entries["details"] == [["class", "ap"], ["traffic [cone]", 1.5]]
    assert entries["images_per_second"] == 600.0
    assert {"git_commit", "command", "device", "date", "config", "checkpoint_sha256", "num_processes"} <= entries.keys()
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert read_results(path.parent)[0].row == "ViT-Ti/8, LaSt K=1"
    monkeypatch.setattr(results, "ROOT", results.ROOT / "last_vit")  # as where a wheel lies in somebody's repository
    assert json.loads(write(tmp_path).read_text())["git_commit"] == "unknown"


def test_measurements_of_one_run_are_one_file(tmp_path):
    """What they share stands once; each comes back whole."""
    (record,) = read_results(write(tmp_path).parent)
    both = [record, replace(record, row="another", metrics={"point_in_box": 1.0})]
    content = json.loads(write_records("run", both, tmp_path).read_text())
    assert [set(part) for part in content["measurements"]] == [{"row", "metrics"}] * 2
    assert content["config"] == record.config
    assert read_results(tmp_path) == both


def test_no_path_of_this_machine_is_in_a_record(tmp_path):
    config = {"model": f"open_clip:ViT-B-32/{tmp_path}/a.pt", "train": {"roots": [tmp_path.as_posix()], "lr": 0.1}}
    text = write(tmp_path, config=config).read_text()
    assert json.loads(text)["config"]["model"] == "open_clip:ViT-B-32/.../a.pt"
    assert json.loads(text)["config"]["train"]["lr"] == 0.1
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a__b-1.2", "a__b-1.2"),
        ("patch_hit_ViT-B/16, K = 1", "patch_hit_ViT-B_16_K_1"),
        ("../results/x", "__results_x"),
        ("\u00e9t\u00e9", "_t_"),
        ("", "_"),
    ],
)
def test_any_text_becomes_a_name(tmp_path, text, name):
    assert result_name(text) == name
    assert write(tmp_path, name).name == f"{name}.json"


def test_dataset_is_named_after_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in ("Mini/", "Mini/train", tmp_path / "Mini" / "val"):
        assert dataset_name(root, "val") == "Mini"
    assert dataset_name(".", "val") == tmp_path.name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metrics": {"acc1": float("nan")}}, "'acc1'.*finite"),
        ({"config": {"lr": float("inf")}}, "not JSON compliant"),
        ({"n_images": 0}, "at least one image"),
    ],
)
def test_refused_and_the_old_record_stays(tmp_path, changes, match):
    path = write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=match):
        write(tmp_path, **changes)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_files_are_refused(tmp_path):
    for content, keys in (({"name": 1, "extra": 1}, "'extra'"), ({"measurements": 5}, ""), ({"measurements": [5]}, "")):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"other\.json is not a result: missing .*unknown \[{keys}\]"):
            read_results(tmp_path)


def test_script_is_named_from_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--row", "ViT-B/16, LaSt K=1"])
    assert run_command() == "python visualization/evaluate_patch_hit.py --row 'ViT-B/16, LaSt K=1'"
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "own.py")])
    assert run_command() == "python .../own.py"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert run_command() == "python -c"


def test_launcher_is_the_one_that_was_used(monkeypatch):
    """Two processes of detectron2's launcher are an argument; torchrun's are counted per machine."""
    monkeypatch.setattr(sys, "argv", ["lazy_train.py", "--num-gpus", "2"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert run_command() == "python lazy_train.py --num-gpus 2"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert run_command() == "torchrun --nproc-per-node=4 lazy_train.py --num-gpus 2"


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("/mnt/disk3/imagenet/", ".../imagenet"),
        ("/here/data/my folder", "data/my folder"),
        ("/hereafter/data", ".../data"),
        ("dataset.root=/mnt/imagenet", "dataset.root=.../imagenet"),
        ("roots=['/mnt/a', '/here/b']", "roots=['.../a', 'b']"),
        ("--model=open_clip:ViT-B-32//here/a.pt", "--model=open_clip:ViT-B-32/a.pt"),
        ("file:///mnt/a", "file://.../a"),
        ("tcp://10.0.0.1:2333", "tcp://10.0.0.1:2333"),
        ("../data/imagenet", "../data/imagenet"),
        ("CLS / LaSt", "CLS / LaSt"),
        ("", ""),
    ],
)
def test_no_path_of_this_machine(monkeypatch, typed, recorded):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/here"))
    assert hide_machine_paths(typed) == recorded
