"""visualize_norms.py: its numbers against a computation by hand, and its two pictures."""

import numpy as np
import pytest
import torch
import visualize_norms
from diagnostic_parts import FOLDER, MASKS, RESNET, VIT, read_by_hand


def test_numbers_against_a_computation_by_hand(call, capsys):
    cutoff = 2.3
    (record,) = call(visualize_norms, *MASKS, "--dataset-name", "mini", "--cutoff", str(cutoff), "--examples", "0")
    images, metrics = read_by_hand(VIT), record["metrics"]
    norms = np.stack([image.norm.numpy() for image in images])
    front = np.stack([image.front.numpy() for image in images])
    assert record["dataset"] == "mini, 64 px, cut-off 2.3"
    assert metrics["norm_median"] == pytest.approx(np.median(norms), rel=0.01)
    assert metrics["norm_max"] == pytest.approx(norms.max(), rel=0.01)
    assert metrics["outlier_share"] == pytest.approx(100 * (norms >= cutoff).mean(), abs=1e-4)
    assert 0 < metrics["outlier_share"] < 100
    assert metrics["norm_ratio"] == pytest.approx(norms[front].mean() / norms[~front].mean(), abs=1e-4)
    split = [(a[f].mean() > a[~f].mean()) for a, f in zip(norms, front, strict=True) if 0 < f.sum() < 16]
    assert metrics["foreground_higher"] == pytest.approx(100 * np.mean(split), abs=1e-3)
    per_image = [np.corrcoef(image.norm, image.score)[0, 1] for image in images]
    assert metrics["correlation"] == pytest.approx(np.mean(per_image), abs=1e-4)
    assert (record["n_images"], record["config"]["num_split_images"], record["config"]["num_patches"]) == (
        8,
        len(split),
        128,
    )
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
