"""What every evaluation shares: the flags of records, where a record goes, and names that no two runs share."""

from pathlib import Path

import pytest

from last_vit.command_line import add_record_flags, command_parser
from last_vit.evaluation import print_table, write_record
from last_vit.results import read_results


def record(argv, **changes):
    parser = command_parser("x.py", "")
    add_record_flags(parser)
    arguments = {
        "dataset": "synthetic val, 32 px",
        "n_images": 4,
        "config": {"checkpoint": "runs/a/last/model.pth"},
        "checkpoint_sha256": "0" * 16,
        "seconds": 1.0,
        "device": "cpu",
        **changes,
    }
    return write_record(parser.parse_args(argv), "votes", "ViT, K=1", {"lift": 1.5}, **arguments)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_trial_enters_no_table():
    path = record([])
    assert path.parent == Path("output/votes")
    assert (read_results(path.parent)[0].table, read_results(path.parent)[0].row) == (None, "ViT, K=1")
    assert not Path("results").exists()


@pytest.mark.parametrize(("argv", "row"), [(["--row", "mine"], "mine"), (["--table"], "ViT, K=1")])
def test_a_row_enters_results(argv, row):
    assert record(argv).parent == Path("results")
    (kept,) = read_results()
    assert (kept.table, kept.row) == ("votes", row)


def test_records_of_different_runs_never_meet():
    """Folders may share their last name: the weights, the settings and the input tell runs apart."""
    same, again = record(["--output", "x"]), record(["--output", "x"])
    others = [
        record(["--output", "x"], checkpoint_sha256="1" * 16),
        record(["--output", "x"], config={"checkpoint": "runs/b/last/model.pth"}),
        record(["--output", "x"], dataset="synthetic val, 64 px"),
    ]
    assert same == again
    assert len({same, *others}) == 4
    assert same.name.startswith("x_ViT_K_1-")


def test_table_is_aligned(capsys):
    print_table([["model", "top-1"], ["a", "7"], ["longer", "12.34"]])
    assert capsys.readouterr().out.splitlines() == ["model   top-1", "a           7", "longer  12.34"]
