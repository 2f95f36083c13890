"""The tables of README and docs/: rows, seeds, the paper's numbers, ages, and what is refused."""

from dataclasses import replace
from itertools import product

import make_results_tables
import paper_tables
import pytest
from record_parts import write

from last_vit.results import ROOT, git_commit, read_results, write_records

PAGE = "# Title\n\n<!-- results:point_in_box -->\nold\n<!-- /results -->\ntail\n"


def rows(readme: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("|")]


def test_table_keeps_the_papers_inputs_apart(tmp_path):
    write(tmp_path, "seed0")
    again = {"metrics": {"point_in_box": 45.21, "point_in_box_random": 20.0, "point_in_box_center": 50.0}}
    write(tmp_path, "seed1", **again, checkpoint_sha256="1" * 16)
    write(tmp_path, "same_label", row="ViT, labels, LaSt", n_images=7)
    write(tmp_path, "unlisted", table=None, row=None)
    table = {tuple(row[:2]): row[2:] for row in rows(make_results_tables.render_page(PAGE, read_results(tmp_path)))}
    seeds = table["ViT-Ti/8, LaSt K=1", "synthetic"]
    assert seeds[:3] == ["", "44.2 +- 1.4", "20.0 +- 0.0"]
    assert seeds[4:6] == ["1,200", "2"]  # behind the three metrics that are there
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
    table = rows(make_results_tables.render_page(PAGE, read_results(tmp_path)))
    place = next(i for i, row in enumerate(table) if row[0] == "ViT, labels, LaSt")
    assert [row[1:4] for row in table[place : place + 2]] == [
        [f"{paper_tables.IMAGENET}, {protocols[0]}", "55.1", "43.2"],
        [f"{paper_tables.IMAGENET}, {protocols[1]}", "", "43.2"],
    ]
    link = f"[{make_results_tables._dated(git_commit())}](results/run0.json)"
    assert [row[-1] for row in table[place : place + 2]] == [f"paper; {link}", link.replace("run0", "run1")]
    assert table[place + 2][0] == "DINO, CLS"
    assert [row[2] for row in table if row[0] == "ViT, labels, LaSt"] == ["55.1", "", "", ""]
    assert {len(row) for row in table} == {len(table[0])}


def test_seeds_are_one_row_and_layers_columns(tmp_path):
    for seed, value in enumerate((40.0, 44.0, 45.0)):
        layers = [{"layer": "1", "point_in_box": value}, {"layer": "norm", "point_in_box": 50}]
        changes = {"metrics": {"auroc": value, "auroc_norm": value}, "by_layer": layers, "table": "layers"}
        changes["checkpoint_sha256"] = str(seed)
        write(tmp_path, f"seed{seed}", row=f"ViT-Ti, LaSt K=1, seed {seed}, 1 epoch", **changes)
    write(tmp_path, "other", row="ViT-Ti, LaSt K=1, no seed", **changes)
    found = {}
    for name in ("layers", "layers_by_block", "layers_by_ranking"):
        page = PAGE.replace("point_in_box", name)
        header, _, *lines = rows(make_results_tables.render_page(page, read_results(tmp_path)))
        found |= {(line[0], title): cell for line in lines for title, cell in zip(header, line, strict=True)}
    row = "ViT-Ti, LaSt K=1, 1 epoch"
    wanted = dict.fromkeys(("AUROC", "AUROC, norm", "1"), "43.0 +- 2.6") | {"norm": "50.0 +- 0.0", "seeds": "3"}
    assert {title: found[row, title] for title in wanted} == wanted
    assert found["ViT-Ti, LaSt K=1, no seed", "1"] == "45.0"


def test_every_input_is_a_table_in_the_order_that_is_read(tmp_path):
    """Models from the published one to the random one, then what is the same for all of them."""
    labels = ["random", "cured, LaSt K=N/2", "CLS, 4 registers", "mean", "LaSt K=7", "CLS", "as published"]
    metrics = {"point_in_box": 50.0, "point_in_box_random": 40.0, "point_in_box_center": 80.0}
    inputs = [f"tiny-imagenet-100 val, {side} px, center rule" for side in (224, 112)]
    for number, (row, dataset) in enumerate(product(labels, ["coco-mini/val2017, 224 px, masks", *inputs])):
        about = {"table": "layers", "row": row, "dataset": dataset, "metrics": metrics}
        write(tmp_path, f"run{number:02}", **about)
    page = make_results_tables.render_page(PAGE.replace("point_in_box", "layers"), read_results(tmp_path))
    titles = [line for line in page.splitlines() if line.endswith(" (1,200 counted):")]
    assert [title.split(",")[1] for title in titles] == [" 112 px", " 224 px", " 224 px"]
    first = rows(page)[: len(rows(page)) // 3]
    assert first[0] == ["model", "PiB", "seeds", "source"]
    order = ["as published", "CLS", "mean", "LaSt K=7", labels[2], labels[1], "random"]
    assert [line[0] for line in first[2:]] == [*order, "*a random patch*", "*the centre*"]
    assert [line[1] for line in first[-2:]] == ["40.0", "80.0"]
    write(tmp_path, "fewer", **about | {"row": "max", "n_images": 7})
    page = make_results_tables.render_page(PAGE.replace("point_in_box", "layers"), read_results(tmp_path))
    assert page.count(" (7 or 1,200 counted):") == 1


def test_measured_again_counts_once(tmp_path):
    """The newest of one command that measured two models, and of another that measured one of them later."""
    write(tmp_path, "old")
    (old,) = read_results(tmp_path)
    other = replace(old, row="other", metrics={"point_in_box": 7.0}, checkpoint_sha256=None)
    write_records("old", [replace(old, date="2000-01-01T00:00:00+00:00"), other], tmp_path)
    write(tmp_path, "new", metrics={**old.metrics, "point_in_box": 50.0})
    table = {row[0]: row for row in rows(make_results_tables.render_page(PAGE, read_results(tmp_path)))}
    assert (table[old.row][3], table[old.row][-2], table["other"][3]) == ("50.0", "1", "7.0")
    assert "](results/old.json)" in table["other"][-1]


def test_runs_that_differ_are_not_averaged(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", n_images=1000, checkpoint_sha256="1" * 16)
    with pytest.raises(ValueError, match="results a and b share the row"):
        make_results_tables.render_page(PAGE, read_results(tmp_path))


def test_unknown_table():
    with pytest.raises(ValueError, match="no table is called 'nothing'; known: point_in_box"):
        make_results_tables.render_page(PAGE.replace("point_in_box", "nothing"), [])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in make_results_tables.PAGES:
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "docs/results.md").write_text(PAGE)
    return tmp_path


def is_stale(*arguments: str) -> bool:
    """As --check says, which then ends with status 1 and a text."""
    try:
        make_results_tables.main([*arguments, "--check"])
    except SystemExit as stop:
        return str(stop).startswith("stale: ")
    return False


def test_check_fails_only_when_stale(root, monkeypatch):
    page = root / "docs/results.md"
    write(root / "results")
    arguments = ["--root", str(root)]
    assert is_stale(*arguments)
    assert page.read_text() == PAGE
    make_results_tables.main(arguments)
    assert "](../results/run.json)" in page.read_text()
    assert page.read_text().startswith("# Title\n\n<!-- results:point_in_box -->\n| model |")
    assert page.read_text().endswith("<!-- /results -->\ntail\n")
    monkeypatch.setattr(make_results_tables, "_dated", lambda commit: f"{commit} (9999 ago)")
    assert not is_stale(*arguments), "the age of a row is no reason"
    write(root / "results", n_images=11)
    assert is_stale(*arguments)


def test_a_record_that_no_table_shows_is_named(root, refused):
    write(root / "results", "lost", table=None, row=None)
    assert "holds what no table shows: lost" in refused(make_results_tables.main, "--root", root)


def test_the_summary_shows_what_was_measured_here():
    page = make_results_tables.render_page(
        "<!-- results:summary -->\n<!-- /results -->", read_results(ROOT / "results")
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[3:-1]]
    assert {line[0] for line in lines} <= {task.words for task in paper_tables.SUMMARY}
    assert all(any(line[3:6]) for line in lines)


def test_records_are_few():
    assert len([*(ROOT / "results").glob("*.json")]) <= 70
