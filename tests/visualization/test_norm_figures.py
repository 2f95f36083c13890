"""visualize_norms.py: its numbers, and its two pictures."""

import pytest
import torch
import visualize_norms
from diagnostic_parts import FOLDER, MASKS, RESNET, VIT, read_by_hand
from patch_norms import PatchNorms


def test_numbers_are_those_of_the_statistics(call, capsys):
    (record,) = call(visualize_norms, *MASKS, "--dataset-name", "mini", "--cutoff", "2.3", "--examples", "0")
    assert record["dataset"] == "mini, 64 px, cut-off 2.3"
    norms = PatchNorms(cutoff=2.3)
    for image in read_by_hand(VIT):
        norms.update(*(each[None] for each in (image.norm, image.score, image.front, image.known)))
    expected = norms.compute()
    assert 0 < expected["outlier_share"] < 100
    found = {**record["metrics"], **record["config"], "num_images": record["n_images"]}
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-3)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ViT: 8 images, 128 patches", "high norm", "fg / bg", "results/norms.png"))


def test_the_pictures_show_what_was_counted(call):
    records = call(visualize_norms, *MASKS, "--figure", "n.png", "--examples", "2", models=(VIT, RESNET))
    assert {record["config"]["num_layers"] for record in records} == {1, 6}
    axes = call.figures["n.png"].axes
    bars = [patch for patch in axes[1].patches if patch.get_fill()]
    assert [sum(bar.get_data().values) for bar in bars] == pytest.approx([100, 100])  # foreground and background
    shown = call.figures["n_examples.png"].axes
    assert len(shown) == 2 * (1 + 2 * 2)
    assert [shown[i].images[0].get_array().shape for i in (1, 3)] == [(4, 4), (2, 2)]


def test_without_annotations_there_is_no_split(call, capsys):
    (record,) = call(visualize_norms, *FOLDER, "--examples", "0")
    assert not {"norm_ratio", "outliers_in_background", "num_images"} & record["metrics"].keys()
    assert {"high_norm", "outlier_share", "cutoff", "correlation"} <= record["metrics"].keys()
    assert "fg / bg" not in capsys.readouterr().out
    assert list(call.figures) == ["results/norms.png"]


def test_a_map_without_norms_asks_for_a_cutoff(call, monkeypatch, capsys):
    monkeypatch.setattr("norm_figures.token_norms", lambda tokens: torch.zeros(tokens.shape[:2]))
    with pytest.raises(SystemExit):
        call(visualize_norms, *FOLDER)
    assert "model 'ViT': half of the patches have a norm below" in capsys.readouterr().err
