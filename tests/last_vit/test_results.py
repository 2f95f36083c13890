"""Results records and the README tables made from them."""

import json
from pathlib import Path

import make_results_tables
import paper_tables
import pytest

from last_vit.results import dataset_name, read_results, result_name, write_result

README = "# Title\n\n<!-- results:point_in_box -->\nold\n<!-- /results -->\ntail\n"


def write(directory: Path, name: str = "run", **changes) -> Path:
    arguments = {
        "metrics": {"point_in_box": 43.21, "point_in_box_random": 20.0, "point_in_box_center": 50.0},
        "n_images": 1200,
        "dataset": "synthetic",
        "config": {"top_k": 1},
        "checkpoint_sha256": "0" * 16,
        "seconds": 2.0,
        "device": "cpu",
        "table": "point_in_box",
        "row": "ViT-Ti/8, LaSt K=1",
        **changes,
    }
    return write_result(name, arguments.pop("metrics"), directory=directory, **arguments)


def test_record_has_its_lineage(tmp_path):
    path = write(tmp_path / "results")
    entries = json.loads(path.read_text())
    assert path.name == "run.json"
    assert entries["metrics"]["point_in_box"] == 43.21
    assert entries["images_per_second"] == 600.0
    assert {"git_commit", "command", "device", "date", "config", "checkpoint_sha256", "num_processes"} <= entries.keys()
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert read_results(path.parent)[0].row == "ViT-Ti/8, LaSt K=1"


def test_two_processes_of_another_launcher_are_no_torchrun(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr("last_vit.results.world_size", lambda: 2)
    entries = json.loads(write(tmp_path).read_text())
    assert entries["num_processes"] == 2
    assert entries["command"].startswith("python ")


def test_no_path_of_this_machine_is_in_a_record(tmp_path):
    config = {"model": f"open_clip:ViT-B-32/{tmp_path}/a.pt", "train": {"roots": [tmp_path.as_posix()], "lr": 0.1}}
    text = write(tmp_path, config=config).read_text()
    assert json.loads(text)["config"]["model"] == "open_clip:ViT-B-32/.../a.pt"
    assert json.loads(text)["config"]["train"]["lr"] == 0.1
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ViT_190k", "ViT_190k"),
        ("a__b-1.2", "a__b-1.2"),
        ("patch_hit_ViT-B/16, K = 1", "patch_hit_ViT-B_16_K_1"),
        ("../results/x", "__results_x"),
        ("-x", "_x"),
        ("\u00e9t\u00e9", "_t_"),
        ("", "_"),
    ],
)
def test_any_text_becomes_a_name(tmp_path, text, name):
    assert result_name(text) == name
    assert write(tmp_path, name).name == f"{name}.json"


def test_dataset_is_named_after_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in ("Mini", "Mini/", "Mini/val", "Mini/train", tmp_path / "Mini" / "val"):
        assert dataset_name(root, "val") == "Mini"
    assert dataset_name("Mini/test", "test") == "Mini"
    assert dataset_name(".", "val") == tmp_path.name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metrics": {"acc1": float("nan")}}, "'acc1'.*finite"),
        ({"config": {"lr": float("inf")}}, "not JSON compliant"),
        ({"name": "../run"}, "file name"),
        ({"n_images": 0}, "at least one image"),
        ({"row": None}, "no row label"),
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
    (tmp_path / "other.json").write_text('{"name": "x", "extra": 1}')
    with pytest.raises(ValueError, match=r"other\.json is not a result: missing .*unknown \['extra'\]"):
        read_results(tmp_path)
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_results(tmp_path)


def rows(readme: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("|")]


def test_table_keeps_the_papers_inputs_apart(tmp_path):
    write(tmp_path, "seed0")
    write(tmp_path, "seed1", metrics={"point_in_box": 45.21, "point_in_box_random": 20.0, "point_in_box_center": 50.0})
    write(tmp_path, "same_label", row="ViT, labels, LaSt", n_images=7)
    write(tmp_path, "unlisted", table=None, row=None)
    table = {tuple(row[:2]): row[2:] for row in rows(make_results_tables.render_readme(README, read_results(tmp_path)))}
    seeds = table["ViT-Ti/8, LaSt K=1", "synthetic"]
    assert seeds[:3] == ["", "44.2 +- 1.4", "20.0 +- 0.0"]
    assert seeds[6:8] == ["1,200", "2"]
    assert table["ViT, labels, LaSt", "synthetic"][:2] == ["", "43.2"]
    paper = table["ViT, labels, LaSt", paper_tables.IMAGENET]
    assert paper[:2] == ["55.1", ""]
    assert "unlisted" not in str(table)


def test_runs_on_the_papers_input_join_its_row(tmp_path):
    """As evaluate_patch_hit.py writes them, with the protocol (its own test has this over its command line)."""
    shared = {"row": "ViT, labels, LaSt"}
    protocols = ("any box, center rule, cls token", "box < 25 %, release rule, trained token")
    for i, protocol in enumerate(protocols):
        write(tmp_path, f"run{i}", **shared, dataset=f"{paper_tables.IMAGENET}, {protocol}")
    write(tmp_path, "run2", **shared, dataset=paper_tables.IMAGENET.replace("224", "448"))
    write(tmp_path, "run3", **shared, dataset=f"Tiny {paper_tables.IMAGENET}, {protocols[0]}")
    table = rows(make_results_tables.render_readme(README, read_results(tmp_path)))
    place = next(i for i, row in enumerate(table) if row[0] == "ViT, labels, LaSt")
    assert [row[1:4] for row in table[place : place + 2]] == [
        [f"{paper_tables.IMAGENET}, {protocols[0]}", "55.1", "43.2"],
        [f"{paper_tables.IMAGENET}, {protocols[1]}", "", "43.2"],
    ]
    assert [row[-1] for row in table[place : place + 2]] == ["paper; [1](results/run0.json)", "[1](results/run1.json)"]
    assert table[place + 2][0] == "DINO, CLS"
    assert [row[2] for row in table if row[0] == "ViT, labels, LaSt"] == ["55.1", "", "", ""]
    assert {len(row) for row in table} == {len(table[0])}


def test_runs_that_differ_are_not_averaged(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", n_images=1000)
    with pytest.raises(ValueError, match="results a and b share the row"):
        make_results_tables.render_readme(README, read_results(tmp_path))


def test_unknown_table_and_missing_marker(tmp_path):
    with pytest.raises(ValueError, match="'nothing'; known tables: point_in_box"):
        make_results_tables.render_readme(README.replace("point_in_box", "nothing"), [])
    write(tmp_path)
    with pytest.raises(ValueError, match="add the lines"):
        make_results_tables.render_readme("# no tables\n", read_results(tmp_path))


def test_check_fails_only_when_stale(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(README)
    write(results)
    arguments = ["--readme", str(readme), "--results", str(results)]
    assert make_results_tables.main([*arguments, "--check"]) == 1
    assert readme.read_text() == README
    assert make_results_tables.main(arguments) == 0
    assert make_results_tables.main([*arguments, "--check"]) == 0
    assert readme.read_text().startswith("# Title\n\n<!-- results:point_in_box -->\n| model |")
    assert readme.read_text().endswith("<!-- /results -->\ntail\n")
    write(results, n_images=11)
    assert make_results_tables.main([*arguments, "--check"]) == 1
